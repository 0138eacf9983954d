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
// Numbers of A that the next rows need again: they stay in the cache. The panel that they make has so many
// columns at least, since rows are read faster in long pieces.
constexpr int64_t PANEL_NUMBERS = 16384;
constexpr int64_t PANEL_COLUMNS = 256;

typedef double Wide __attribute__((vector_size(DOUBLES * 8)));
typedef float Narrow __attribute__((vector_size(DOUBLES * 4)));
typedef int32_t Bits __attribute__((vector_size(DOUBLES * 4)));
typedef uint16_t Short __attribute__((vector_size(DOUBLES * 2)));
typedef uint64_t Longs __attribute__((vector_size(DOUBLES * 8)));

// The same in memory, where vectors begin anywhere.
typedef double WideAt __attribute__((vector_size(DOUBLES * 8), aligned(8), may_alias));

constexpr int32_t INFINITE = 0x7f800000;
constexpr uint64_t SIGN = 0x8000000000000000;

// What a stored type keeps of a binary64: bits of the significand that are dropped, its smallest normal
// number, 1.5 * 2^52 of its smallest steps, and the smallest size that is rounded to infinity.
template <int TYPE> struct Stored;
template <> struct Stored<TYPE_BF16> {
    static constexpr int DROPPED = 45;
    static constexpr double NORMAL = 0x1p-126, STEPS = 0x1.8p-81, TOO_LARGE = 0x1.ffp127;
};
template <> struct Stored<TYPE_F16> {
    static constexpr int DROPPED = 42;
    static constexpr double NORMAL = 0x1p-14, STEPS = 0x1.8p28, TOO_LARGE = 0x1.ffep15;
};
template <> struct Stored<TYPE_F32> {
    static constexpr double TOO_LARGE = 0x1.ffffffp127;
};

struct Job {
    const uint8_t * base;  // rows x columns of the base's type
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
template <int TYPE> INLINE Wide widened(const uint8_t * base) {
    if (TYPE == TYPE_F32) {
        Narrow numbers;
        memcpy(&numbers, base, sizeof numbers);
        return __builtin_convertvector(numbers, Wide);
    }
    Short stored;
    memcpy(&stored, base, sizeof stored);
    const Bits bits = __builtin_convertvector(stored, Bits);
    if (TYPE == TYPE_BF16) return __builtin_convertvector(as<Narrow>(bits << 16), Wide);
    // The exponent of float16 counts from another zero, hence the power of two.
    const Narrow size = as<Narrow>((bits & 0x7fff) << 13) * 0x1p112f;
    const Bits special = (bits & 0x7c00) == 0x7c00 ? Bits{} + INFINITE : Bits{};
    return __builtin_convertvector(as<Narrow>(as<Bits>(size) | special | ((bits & 0x8000) << 16)), Wide);
}

// Numbers rounded to the stored type, to nearest and ties to even, as binary64.
template <int STORED> INLINE Wide rounded(Wide value) {
    using S = Stored<STORED>;
    constexpr uint64_t HALF = uint64_t(1) << (S::DROPPED - 1);
    const Longs bits = as<Longs>(value), is_odd = (bits >> S::DROPPED) & 1;
    const Wide normal = as<Wide>((bits + (HALF - 1) + is_odd) & ~(2 * HALF - 1));
    // Numbers below the normal ones are counted in steps: the adder rounds to them, and forgets the sign
    // of what becomes zero.
    const Wide small = as<Wide>(as<Longs>((value + S::STEPS) - S::STEPS) | (bits & SIGN));
    return as<Wide>(bits & ~SIGN) < S::NORMAL ? small : normal;
}
template <> INLINE Wide rounded<TYPE_F32>(Wide value) { return value; }

// Numbers of the stored type, as floats; `finite` loses the bits of lanes in which one is too large or
// none.
template <int STORED> INLINE Narrow stored_numbers(Wide value, Longs * finite) {
    *finite &= as<Longs>(as<Wide>(as<Longs>(value) & ~SIGN) < Stored<STORED>::TOO_LARGE);
    return __builtin_convertvector(rounded<STORED>(value), Narrow);
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
template <int TYPE, int STORED>
INLINE void settle(const Job & job, int64_t place, Wide product, Longs * finite) {
    const Wide value = widened<TYPE>(job.base + place * bytes_of(TYPE)) + product * job.scale;
    if (job.unrounded) {
        memcpy(job.unrounded + place, &value, sizeof value);
    } else {
        const Narrow stored = stored_numbers<STORED>(value, finite);
        memcpy(job.out + place, &stored, sizeof stored);
    }
}

// The same for the last vector of a row when it is not full.
template <int TYPE, int STORED>
void settle_part(const Job & job, int64_t place, int64_t count, Wide product, Longs * finite) {
    uint8_t base[DOUBLES * 4] = {0};
    float out[DOUBLES];
    double unrounded[DOUBLES];
    memcpy(base, job.base + place * bytes_of(TYPE), count * bytes_of(TYPE));
    const Job part{base, nullptr, job.scale, out, job.unrounded ? unrounded : nullptr, DOUBLES, 0};
    settle<TYPE, STORED>(part, 0, product, finite);
    if (job.unrounded) {
        memcpy(job.unrounded + place, unrounded, count * sizeof(double));
    } else {
        memcpy(job.out + place, out, count * sizeof(float));
    }
}

// Columns `first` to `end` of some rows; `a` holds those columns as `packed` leaves them.
template <int TYPE, int STORED, int ROW_COUNT>
void merge_panel(const Job & job, const double * a, int64_t row, int64_t first, int64_t end, Longs * finite) {
    for (int64_t column = first; column < end; column += COLUMNS, a += job.rank * COLUMNS) {
        Wide product[ROW_COUNT][VECTORS];
        for (int r = 0; r < ROW_COUNT; ++r) {
            for (int v = 0; v < VECTORS; ++v) product[r][v] = Wide{};
        }
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
                    settle<TYPE, STORED>(job, place, product[r][v], finite);
                } else if (here < end) {
                    settle_part<TYPE, STORED>(job, place, end - here, product[r][v], finite);
                }
            }
        }
    }
}

// DoRA: rows brought to their lengths.
template <int STORED> void stretch(const Job & job, const float * magnitude, int64_t rows, Longs * finite) {
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
            const Narrow stored = stored_numbers<STORED>(numbers * factor, finite);
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
template <int TYPE, int STORED> bool merge(Job job, const float * a, const float * magnitude, int64_t rows) {
    const int64_t fitting = PANEL_NUMBERS / std::max<int64_t>(job.rank, 1) / COLUMNS * COLUMNS;
    const int64_t width = std::min(job.columns, std::max(fitting, PANEL_COLUMNS));
    std::vector<double> panel(job.rank * (width + COLUMNS)), unrounded(magnitude ? rows * job.columns : 0);
    job.unrounded = magnitude ? unrounded.data() : nullptr;
    Longs finite = ~Longs{};
    for (int64_t first = 0; first < job.columns; first += width) {
        const int64_t end = std::min(first + width, job.columns);
        packed(job, a, first, end, panel.data());
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) {
            merge_panel<TYPE, STORED, ROWS>(job, panel.data(), row, first, end, &finite);
        }
        for (; row < rows; ++row) {
            merge_panel<TYPE, STORED, 1>(job, panel.data(), row, first, end, &finite);
        }
    }
    if (magnitude) stretch<STORED>(job, magnitude, rows, &finite);
    for (int l = 0; l < DOUBLES; ++l) {
        if (!finite[l]) return false;
    }
    return true;
}

template <int TYPE>
bool merge_into(int stored, const Job & job, const float * a, const float * magnitude, int64_t rows) {
    switch (stored) {
        case TYPE_F32: return merge<TYPE, TYPE_F32>(job, a, magnitude, rows);
        case TYPE_F16: return merge<TYPE, TYPE_F16>(job, a, magnitude, rows);
        default: return merge<TYPE, TYPE_BF16>(job, a, magnitude, rows);
    }
}

}  // namespace

// Merges rows of a base of one unquantised type (ggml's numbers: 0, 1 or 30) into another; `magnitude` is
// null or holds a number for every row. Returns 0, or 1 when a number that came out is not finite.
extern "C" int merge_rows_of_base(int type, int stored, const void * base, const float * a, const float * b,
                                  double scale, const float * magnitude, float * out, int64_t rows,
                                  int64_t columns, int64_t rank) {
    const std::vector<double> wide_b(b, b + rows * rank);
    const Job job{(const uint8_t *)base, wide_b.data(), scale, out, nullptr, columns, rank};
    switch (type) {
        case TYPE_F32: return !merge_into<TYPE_F32>(stored, job, a, magnitude, rows);
        case TYPE_F16: return !merge_into<TYPE_F16>(stored, job, a, magnitude, rows);
        default: return !merge_into<TYPE_BF16>(stored, job, a, magnitude, rows);
    }
}
