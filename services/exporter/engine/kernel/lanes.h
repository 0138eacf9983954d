// Many numbers at once, written like one.
//
// A `Lanes` holds one number of each of LANE_COUNT sub-blocks. Its operators do to every lane exactly
// what the scalar operator does, in the same order and with the same rounding, so that code over lanes
// gives the bits of the scalar code it was written after. Two things keep it so: the compiler is instructed
// -ffp-contract=off and never -ffast-math, and no operation here ever mixes lanes.
//
// Several native vectors a `Lanes` keep the adders busy while a sum waits for its last addition; and no
// block has more than 16 sub-blocks, so that a tile always holds whole blocks.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int NATIVE_LANES = 16;
#elif defined(__AVX__)
constexpr int NATIVE_LANES = 8;
#else
constexpr int NATIVE_LANES = 4;
#endif
constexpr int PART_COUNT = NATIVE_LANES == 4 ? 4 : 2;
constexpr int LANE_COUNT = NATIVE_LANES * PART_COUNT;

typedef float Floats __attribute__((vector_size(NATIVE_LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(NATIVE_LANES * 4)));

// Functions over lanes are only fast inside the loop that calls them.
#define INLINE inline __attribute__((always_inline))
#define EVERY_PART for (int p = 0; p < PART_COUNT; ++p)

// A yes or no of each lane.
struct Mask {
    Ints part[PART_COUNT];

    Mask() = default;
    INLINE Mask(const Mask & other) { EVERY_PART part[p] = other.part[p]; }
    INLINE Mask & operator=(const Mask & other) { EVERY_PART part[p] = other.part[p]; return *this; }

    friend INLINE Mask operator&(Mask a, Mask b) { Mask r; EVERY_PART r.part[p] = a.part[p] & b.part[p]; return r; }
    friend INLINE Mask operator|(Mask a, Mask b) { Mask r; EVERY_PART r.part[p] = a.part[p] | b.part[p]; return r; }
    friend INLINE Mask operator!(Mask a) { EVERY_PART a.part[p] = ~a.part[p]; return a; }
    INLINE int32_t operator[](int lane) const { return part[lane / NATIVE_LANES][lane % NATIVE_LANES]; }
};

INLINE bool any(Mask mask) {
    Ints folded = mask.part[0];
    for (int p = 1; p < PART_COUNT; ++p) folded |= mask.part[p];
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)folded, (__m512i)folded) != 0;
#elif defined(__AVX__)
    return !_mm256_testz_si256((__m256i)folded, (__m256i)folded);
#else
    int32_t one = 0;
    for (int l = 0; l < NATIVE_LANES; ++l) one |= folded[l];
    return one != 0;
#endif
}

INLINE bool all(Mask mask) {
    Ints folded = mask.part[0];
    for (int p = 1; p < PART_COUNT; ++p) folded &= mask.part[p];
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)folded, (__m512i)folded) == 0xffff;
#elif defined(__AVX__)
    return _mm256_testc_si256((__m256i)folded, (__m256i)(Ints{} - 1));
#else
    bool yes = true;
    for (int l = 0; l < NATIVE_LANES; ++l) yes = yes && folded[l];
    return yes;
#endif
}

struct Lanes {
    Floats part[PART_COUNT];

    Lanes() = default;
    // Vector by vector: left to itself, the compiler copies by pieces that the next load waits for.
    INLINE Lanes(const Lanes & other) { EVERY_PART part[p] = other.part[p]; }
    INLINE Lanes & operator=(const Lanes & other) { EVERY_PART part[p] = other.part[p]; return *this; }
    INLINE Lanes(float same) { EVERY_PART part[p] = same - Floats{}; }

    friend INLINE Lanes operator+(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] + b.part[p]; return a; }
    friend INLINE Lanes operator-(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] - b.part[p]; return a; }
    friend INLINE Lanes operator*(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] * b.part[p]; return a; }
    friend INLINE Lanes operator/(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] / b.part[p]; return a; }
    INLINE Lanes & operator+=(Lanes b) { return *this = *this + b; }

    friend INLINE Mask operator<(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] < b.part[p]; return r; }
    friend INLINE Mask operator>(Lanes a, Lanes b) { return b < a; }
    friend INLINE Mask operator>=(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] >= b.part[p]; return r; }
    friend INLINE Mask operator==(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] == b.part[p]; return r; }
    friend INLINE Mask operator!=(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] != b.part[p]; return r; }

    INLINE float operator[](int lane) const { return part[lane / NATIVE_LANES][lane % NATIVE_LANES]; }
    INLINE void set(int lane, float value) { part[lane / NATIVE_LANES][lane % NATIVE_LANES] = value; }
};

// `yes` where the mask says so, `no` elsewhere.
INLINE Lanes choose(Mask mask, Lanes yes, Lanes no) {
    EVERY_PART yes.part[p] = mask.part[p] ? yes.part[p] : no.part[p];
    return yes;
}

// a < b ? a : b and a > b ? a : b, for which x86 has an instruction with the very same meaning.
#if defined(__AVX512F__)
INLINE Lanes smaller(Lanes a, Lanes b) { EVERY_PART a.part[p] = (Floats)_mm512_min_ps((__m512)a.part[p], (__m512)b.part[p]); return a; }
INLINE Lanes larger(Lanes a, Lanes b) { EVERY_PART a.part[p] = (Floats)_mm512_max_ps((__m512)a.part[p], (__m512)b.part[p]); return a; }
#elif defined(__AVX__)
INLINE Lanes smaller(Lanes a, Lanes b) { EVERY_PART a.part[p] = (Floats)_mm256_min_ps((__m256)a.part[p], (__m256)b.part[p]); return a; }
INLINE Lanes larger(Lanes a, Lanes b) { EVERY_PART a.part[p] = (Floats)_mm256_max_ps((__m256)a.part[p], (__m256)b.part[p]); return a; }
#else
INLINE Lanes smaller(Lanes a, Lanes b) { return choose(a < b, a, b); }
INLINE Lanes larger(Lanes a, Lanes b) { return choose(a > b, a, b); }
#endif

INLINE Lanes absolute(Lanes a) {
    EVERY_PART a.part[p] = (Floats)((Ints)a.part[p] & 0x7fffffff);
    return a;
}

INLINE Lanes root(Lanes a) {
    EVERY_PART for (int l = 0; l < NATIVE_LANES; ++l) a.part[p][l] = __builtin_sqrtf(a.part[p][l]);
    return a;
}

// 1.5 * 2^23: adding it leaves no room for a fraction, so that the sum is rounded to a whole number.
constexpr float ROUNDER = 12582912.f;

// The nearest whole number, ties to even, for |a| < 2^22.
INLINE Lanes nearest(Lanes a) { return (a + ROUNDER) - ROUNDER; }

// The same for any number, wrapping around beyond 2^22 as the reference's bit pattern does.
INLINE int32_t nearest_int(float a) {
    const float sum = a + ROUNDER;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

INLINE Ints nearest_ints(Floats a) { return ((Ints)(a + ROUNDER) & 0x007fffff) - 0x00400000; }

INLINE Lanes nearest_wrapping(Lanes a) {
    EVERY_PART a.part[p] = __builtin_convertvector(nearest_ints(a.part[p]), Floats);
    return a;
}

// Runs of N numbers that lie one after another, one run a lane: x[i] gets number i of every run.
template <int N> INLINE void lay_in_lanes(const float * numbers, Lanes * x) {
#if defined(__AVX__)
    // Eight runs and eight numbers of each at a time.
    static_assert(N % 8 == 0, "runs are made of eights");
    for (int lane = 0; lane < LANE_COUNT; lane += 8) {
        for (int i = 0; i < N; i += 8) {
            __m256 row[8], pair[8], four[8];
            for (int r = 0; r < 8; ++r) row[r] = _mm256_loadu_ps(numbers + (lane + r) * N + i);
            for (int r = 0; r < 8; r += 2) {
                pair[r] = _mm256_unpacklo_ps(row[r], row[r + 1]);
                pair[r + 1] = _mm256_unpackhi_ps(row[r], row[r + 1]);
            }
            for (int r = 0; r < 8; r += 4) {
                four[r] = _mm256_shuffle_ps(pair[r], pair[r + 2], 0x44);
                four[r + 1] = _mm256_shuffle_ps(pair[r], pair[r + 2], 0xee);
                four[r + 2] = _mm256_shuffle_ps(pair[r + 1], pair[r + 3], 0x44);
                four[r + 3] = _mm256_shuffle_ps(pair[r + 1], pair[r + 3], 0xee);
            }
            for (int r = 0; r < 4; ++r) {
                float * low = (float *)&x[i + r] + lane, * high = (float *)&x[i + r + 4] + lane;
                _mm256_storeu_ps(low, _mm256_permute2f128_ps(four[r], four[r + 4], 0x20));
                _mm256_storeu_ps(high, _mm256_permute2f128_ps(four[r], four[r + 4], 0x31));
            }
        }
    }
#else
    for (int lane = 0; lane < LANE_COUNT; ++lane) {
        for (int i = 0; i < N; ++i) x[i].set(lane, numbers[lane * N + i]);
    }
#endif
}
