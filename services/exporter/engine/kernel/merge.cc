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
// Rows that share each load of A.
constexpr int ROWS = 4;
constexpr int COLUMNS = NATIVE_LANES;

struct Job {
    const float * a;      // rank x columns
    const float * b;      // rows x rank
    float * out;          // rows x columns
    int64_t columns;
    int64_t rank;
    float scale;
};

float widen(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// A float rounded to bfloat16, to nearest and ties to even, as a float. Also says if it is finite.
float round_to_bfloat16(float value, uint32_t * worst) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    const uint32_t size = bits & 0x7fffffff;
    *worst = size > *worst ? size : *worst;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// delta[r][c] for ROW_COUNT rows and COLUMNS columns.
template <int ROW_COUNT> INLINE void delta_tile(const Job & job, int64_t row, int64_t column,
                                                Floats * delta) {
    for (int r = 0; r < ROW_COUNT; ++r) delta[r] = Floats{};
    for (int64_t k = 0; k < job.rank; ++k) {
        Floats a;
        memcpy(&a, job.a + k * job.columns + column, sizeof a);
        for (int r = 0; r < ROW_COUNT; ++r) {
            const float b = job.b[(row + r) * job.rank + k];
            for (int l = 0; l < COLUMNS; ++l) delta[r][l] = __builtin_fmaf(b, a[l], delta[r][l]);
        }
    }
}

template <int ROW_COUNT> void merge_rows(const Job & job, int type, const void * base, int64_t row,
                                         uint32_t * worst) {
    for (int64_t column = 0; column < job.columns; column += COLUMNS) {
        Floats delta[ROW_COUNT];
        delta_tile<ROW_COUNT>(job, row, column, delta);
        for (int r = 0; r < ROW_COUNT; ++r) {
            const int64_t place = (row + r) * job.columns + column;
            for (int l = 0; l < COLUMNS; ++l) {
                const float change = delta[r][l] * job.scale;
                if (type == TYPE_BF16) {
                    const float sum = widen(((const uint16_t *)base)[place + l]) + change;
                    job.out[place + l] = round_to_bfloat16(sum, worst);
                } else {
                    const float sum = ((const float *)base)[place + l] + change;
                    uint32_t bits;
                    memcpy(&bits, &sum, sizeof bits);
                    bits &= 0x7fffffff;
                    *worst = bits > *worst ? bits : *worst;
                    job.out[place + l] = sum;
                }
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
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) merge_rows<ROWS>(job, type, base, row, &worst);
    for (; row < rows; ++row) merge_rows<1>(job, type, base, row, &worst);
    return worst >= 0x7f800000;
}
