// Rows of base + scale * B * A, rounded once to what a merged checkpoint stores.
//
// The order of operations is our own and is the same on every processor. All of it is binary64:
//
//   s = 0; for k = 0 .. rank - 1: s = fma(B[row][k], A[k][column], s)
//   v = W[row][column] + s * scale
//   DoRA: n = sqrt(v[0]^2 + v[1]^2 + ... in the order of the columns); v = v * (magnitude[row] / n)
//
// and v is rounded to the stored type, to nearest and ties to even. A product of two binary32 numbers is
// exact in binary64, so that a fused multiply-add, a multiplication followed by an addition, and a
// software emulation give the same s. `merge.py` states the same in numpy; the tests compare both with
// exact rational arithmetic.
// Source: peft `lora.Linear.get_delta_weight` and `merge`, whose float32 sums depend on the BLAS.

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

constexpr int TYPE_F32 = 0;
constexpr int TYPE_F16 = 1;
constexpr int TYPE_BF16 = 30;
// Rows that share each load of A, and vectors of columns that share each load of B: together they keep
// enough sums apart that none waits for its last addition.
constexpr int ROWS = 4;
constexpr int VECTORS = 2;
constexpr int DOUBLES = NATIVE_LANES / 2;
constexpr int COLUMNS = DOUBLES * VECTORS;
// Columns after which the next rows come: what they need of A stays in the cache.
constexpr int64_t PANEL = 256;

typedef double Wide __attribute__((vector_size(DOUBLES * 8)));
typedef float Narrow __attribute__((vector_size(DOUBLES * 4)));
typedef int32_t Bits __attribute__((vector_size(DOUBLES * 4)));
typedef uint16_t Short __attribute__((vector_size(DOUBLES * 2)));

// The same in memory, where vectors begin anywhere.
typedef double WideAt __attribute__((vector_size(DOUBLES * 8), aligned(8), may_alias));

constexpr int32_t SIZE_BITS = 0x7fffffff;
constexpr int32_t INFINITE = 0x7f800000;

struct Job {
    int type;              // of the base
    const uint8_t * base;  // rows x columns of its type
    const double * b;      // rows x rank
    double scale;
    float * out;           // rows x columns
    double * unrounded;    // rows x columns, or null when the result is rounded at once
    int64_t columns;
    int64_t rank;
};

constexpr int bytes_of(int type) { return type == TYPE_F32 ? 4 : 2; }

template <class To, class From> INLINE To as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// Numbers of the base; what is not finite stays so.
INLINE Wide widened(int type, const uint8_t * base) {
    if (type == TYPE_F32) {
        Narrow numbers;
        memcpy(&numbers, base, sizeof numbers);
        return __builtin_convertvector(numbers, Wide);
    }
    Short stored;
    memcpy(&stored, base, sizeof stored);
    const Bits bits = __builtin_convertvector(stored, Bits);
    if (type == TYPE_BF16) return __builtin_convertvector(as<Narrow>(bits << 16), Wide);
    // The exponent of float16 counts from another zero, hence the power of two.
    const Narrow size = as<Narrow>((bits & 0x7fff) << 13) * 0x1p112f;
    const Bits special = (bits & 0x7c00) == 0x7c00 ? Bits{} + INFINITE : Bits{};
    return __builtin_convertvector(as<Narrow>(as<Bits>(size) | special | ((bits & 0x8000) << 16)), Wide);
}

// Of the two floats around a number that is none, the one with an odd last bit. A second rounding to fewer
// bits then gives what rounding the number itself gives.
// Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms
// using rounding to odd".
INLINE Bits rounded_to_odd(Wide value) {
    const Narrow near = __builtin_convertvector(value, Narrow);
    const Bits bits = as<Bits>(near);
    const Wide back = __builtin_convertvector(near, Wide);
    const Wide size = value < 0 ? -value : value, near_size = back < 0 ? -back : back;
    // A comparison that holds is -1.
    const Bits is_above = __builtin_convertvector(size > near_size, Bits);
    const Bits is_below = __builtin_convertvector(size < near_size, Bits);
    return bits + ((is_below - is_above) & ((bits & 1) - 1));
}

// Numbers rounded to the stored type, as floats; `worst` keeps the largest sizes, as bits, which show what
// is not finite.
template <int STORED> INLINE Narrow stored_numbers(Wide value, Bits * worst) {
    Bits bits;
    if (STORED == TYPE_F32) {
        bits = as<Bits>(__builtin_convertvector(value, Narrow));
    } else if (STORED == TYPE_BF16) {
        bits = rounded_to_odd(value);
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff;
    } else {
        bits = rounded_to_odd(value);
        const Bits size = bits & SIZE_BITS, sign = bits & ~SIZE_BITS;
        Bits kept = (size + 0xfff + ((size >> 13) & 1)) & ~0x1fff;
        kept = kept >= 0x47800000 ? Bits{} + INFINITE : kept;
        // Subnormal numbers of float16 count in units of 2^-24: the float adder rounds to them.
        const Bits small = as<Bits>((as<Narrow>(size) + 0.5f) - 0.5f);
        bits = sign | (size < 0x38800000 ? small : kept);
    }
    const Bits size = bits & SIZE_BITS;
    *worst = size > *worst ? size : *worst;
    return as<Narrow>(bits);
}

INLINE Wide fused(double b, Wide a, Wide sum) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    for (int l = 0; l < DOUBLES; ++l) sum[l] = __builtin_fma(b, a[l], sum[l]);
    return sum;
#else
    return sum + b * a;
#endif
}

// One vector of a row: base + product * scale, kept as it is or rounded.
template <int STORED> INLINE void settle(const Job & job, int64_t place, Wide product, Bits * worst) {
    const Wide value = widened(job.type, job.base + place * bytes_of(job.type)) + product * job.scale;
    if (job.unrounded) {
        memcpy(job.unrounded + place, &value, sizeof value);
    } else {
        const Narrow stored = stored_numbers<STORED>(value, worst);
        memcpy(job.out + place, &stored, sizeof stored);
    }
}

// The same for the last vector of a row when it is not full.
template <int STORED>
void settle_part(const Job & job, int64_t place, int64_t count, Wide product, Bits * worst) {
    uint8_t base[DOUBLES * 4] = {0};
    float out[DOUBLES];
    double unrounded[DOUBLES];
    memcpy(base, job.base + place * bytes_of(job.type), count * bytes_of(job.type));
    const Job part{job.type, base, nullptr, job.scale, out, job.unrounded ? unrounded : nullptr, DOUBLES, 0};
    settle<STORED>(part, 0, product, worst);
    if (job.unrounded) {
        memcpy(job.unrounded + place, unrounded, count * sizeof(double));
    } else {
        memcpy(job.out + place, out, count * sizeof(float));
    }
}

// Columns `first` to `end` of some rows; `a` holds those columns as `packed` leaves them.
template <int STORED, int ROW_COUNT>
void merge_panel(const Job & job, const double * a, int64_t row, int64_t first, int64_t end, Bits * worst) {
    for (int64_t column = first; column < end; column += COLUMNS, a += job.rank * COLUMNS) {
        Wide product[ROW_COUNT][VECTORS] = {};
        for (int64_t k = 0; k < job.rank; ++k) {
            const WideAt * part = (const WideAt *)(a + k * COLUMNS);
            for (int r = 0; r < ROW_COUNT; ++r) {
                const double b = job.b[(row + r) * job.rank + k];
                for (int v = 0; v < VECTORS; ++v) product[r][v] = fused(b, part[v], product[r][v]);
            }
        }
        for (int r = 0; r < ROW_COUNT; ++r) {
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t here = column + v * DOUBLES, place = (row + r) * job.columns + here;
                if (here + DOUBLES <= end) {
                    settle<STORED>(job, place, product[r][v], worst);
                } else if (here < end) {
                    settle_part<STORED>(job, place, end - here, product[r][v], worst);
                }
            }
        }
    }
}

// DoRA: rows brought to their lengths.
template <int STORED> void stretch(const Job & job, const float * magnitude, int64_t rows, Bits * worst) {
    for (int64_t row = 0; row < rows; ++row) {
        const double * value = job.unrounded + row * job.columns;
        float * out = job.out + row * job.columns;
        double squares = 0;
        for (int64_t c = 0; c < job.columns; ++c) squares += value[c] * value[c];
        const double factor = magnitude[row] / __builtin_sqrt(squares);
        for (int64_t c = 0; c < job.columns; c += DOUBLES) {
            const int64_t count = std::min<int64_t>(DOUBLES, job.columns - c);
            Wide numbers = {};
            memcpy(&numbers, value + c, count * sizeof(double));
            const Narrow stored = stored_numbers<STORED>(numbers * factor, worst);
            memcpy(out + c, &stored, count * sizeof(float));
        }
    }
}

// Columns `first` to `end` of A, tile by tile, each whole: what a tile needs lies together. Zeros fill the
// last tile.
void packed(const Job & job, const float * a, int64_t first, int64_t end, double * out) {
    for (int64_t column = first; column < end; column += COLUMNS) {
        const int64_t count = std::min<int64_t>(COLUMNS, end - column);
        for (int64_t k = 0; k < job.rank; ++k, out += COLUMNS) {
            const float * from = a + k * job.columns + column;
            std::fill(std::copy(from, from + count, out), out + COLUMNS, 0.0);
        }
    }
}

// Whether every number that came out is finite.
template <int STORED> bool merge(Job job, const float * a, const float * magnitude, int64_t rows) {
    std::vector<double> panel(job.rank * PANEL), unrounded(magnitude ? rows * job.columns : 0);
    job.unrounded = magnitude ? unrounded.data() : nullptr;
    Bits worst = {};
    for (int64_t first = 0; first < job.columns; first += PANEL) {
        const int64_t end = std::min(first + PANEL, job.columns);
        packed(job, a, first, end, panel.data());
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) {
            merge_panel<STORED, ROWS>(job, panel.data(), row, first, end, &worst);
        }
        for (; row < rows; ++row) {
            merge_panel<STORED, 1>(job, panel.data(), row, first, end, &worst);
        }
    }
    if (magnitude) stretch<STORED>(job, magnitude, rows, &worst);
    for (int l = 0; l < DOUBLES; ++l) {
        if (worst[l] >= INFINITE) return false;
    }
    return true;
}

}  // namespace

// Merges rows of a base of one unquantised type (ggml's numbers: 0, 1 or 30) into another; `magnitude` is
// null or holds a number for every row. Returns 0, or 1 when a number that came out is not finite.
extern "C" int merge_rows_of_base(int type, int stored, const void * base, const float * a, const float * b,
                                  double scale, const float * magnitude, float * out, int64_t rows,
                                  int64_t columns, int64_t rank) {
    const std::vector<double> wide_b(b, b + rows * rank);
    const Job job{type, (const uint8_t *)base, wide_b.data(), scale, out, nullptr, columns, rank};
    switch (stored) {
        case TYPE_F32: return !merge<TYPE_F32>(job, a, magnitude, rows);
        case TYPE_F16: return !merge<TYPE_F16>(job, a, magnitude, rows);
        default: return !merge<TYPE_BF16>(job, a, magnitude, rows);
    }
}
