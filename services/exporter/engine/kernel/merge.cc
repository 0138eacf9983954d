// Rows of base + scale * B * A, rounded as a merged checkpoint would hold them.
//
// Every product of B and A is summed in the order of the rank with fused multiply-adds, which is what the
// matrix products of torch and numpy do on processors that have them; the tests compare every bit.
// Source: peft `lora.Linear.get_delta_weight` and `merge`: W += (B @ A) * scaling in float32, once rounded.

#include "lanes.h"

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA 1
#else
#define HAS_FMA 0
#endif

namespace {

constexpr int TYPE_F32 = 0;
constexpr int TYPE_BF16 = 30;
// Rows that share each load of A, and vectors of columns that share each load of B: together they keep
// enough sums apart that none waits for its last addition.
constexpr int ROWS = 4;
constexpr int VECTORS = 2;
constexpr int COLUMNS = NATIVE_LANES * VECTORS;
// Columns after which the next rows come: what they need of A stays in the cache.
constexpr int64_t PANEL = 256;

struct Job {
    const float * a;      // rank x columns
    const float * b;      // rows x rank
    float * out;          // rows x columns
    int64_t columns;
    int64_t rank;
    float scale;
};

INLINE float widen(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// The number itself; `worst` keeps the largest size of all, as bits, which shows what is not finite.
INLINE float looked_at(float value, uint32_t * worst) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffff;
    *worst = bits > *worst ? bits : *worst;
    return value;
}

// A float rounded to bfloat16, to nearest and ties to even, as a float.
INLINE float round_to_bfloat16(float value, uint32_t * worst) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    memcpy(&value, &bits, sizeof value);
    return looked_at(value, worst);
}

INLINE Floats fused(float a, Floats b, Floats sum) {
    for (int l = 0; l < NATIVE_LANES; ++l) sum[l] = __builtin_fmaf(a, b[l], sum[l]);
    return sum;
}

// (B * A)[row + r][column + c] for ROW_COUNT rows and COLUMNS columns.
template <int ROW_COUNT> INLINE void product_tile(const Job & job, int64_t row, int64_t column,
                                                  Floats (&product)[ROW_COUNT][VECTORS]) {
    for (int r = 0; r < ROW_COUNT; ++r) {
        for (int v = 0; v < VECTORS; ++v) product[r][v] = Floats{};
    }
    for (int64_t k = 0; k < job.rank; ++k) {
        Floats a[VECTORS];
        memcpy(a, job.a + k * job.columns + column, sizeof a);
        for (int r = 0; r < ROW_COUNT; ++r) {
            const float b = job.b[(row + r) * job.rank + k];
            for (int v = 0; v < VECTORS; ++v) product[r][v] = fused(b, a[v], product[r][v]);
        }
    }
}

template <int ROW_COUNT> void merge_panel(const Job & job, int type, const void * base, int64_t row,
                                          int64_t first, int64_t end, uint32_t * worst) {
    for (int64_t column = first; column < end; column += COLUMNS) {
        Floats product[ROW_COUNT][VECTORS];
        product_tile<ROW_COUNT>(job, row, column, product);
        for (int r = 0; r < ROW_COUNT; ++r) {
            float change[COLUMNS];
            memcpy(change, product[r], sizeof change);
            const int64_t place = (row + r) * job.columns + column;
            for (int c = 0; c < COLUMNS; ++c) {
                const float delta = change[c] * job.scale;
                job.out[place + c] =
                    type == TYPE_BF16
                        ? round_to_bfloat16(widen(((const uint16_t *)base)[place + c]) + delta, worst)
                        : looked_at(((const float *)base)[place + c] + delta, worst);
            }
        }
    }
}

}  // namespace

// Whether this build can merge: it needs fused multiply-adds in hardware.
extern "C" int merge_is_available() { return HAS_FMA; }

// Columns that a row must be a multiple of.
extern "C" int merge_column_step() { return COLUMNS; }

// Merges rows of a base in float32 (type 0) or bfloat16 (type 30). Returns 0, or 1 when a number that
// came out is not finite.
extern "C" int merge_rows_of_base(int type, const void * base, const float * a, const float * b, float scale,
                                 float * out, int64_t rows, int64_t columns, int64_t rank) {
    const Job job{a, b, out, columns, rank, scale};
    uint32_t worst = 0;
    for (int64_t first = 0; first < columns; first += PANEL) {
        const int64_t end = first + PANEL < columns ? first + PANEL : columns;
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) merge_panel<ROWS>(job, type, base, row, first, end, &worst);
        for (; row < rows; ++row) merge_panel<1>(job, type, base, row, first, end, &worst);
    }
    return worst >= 0x7f800000;
}
