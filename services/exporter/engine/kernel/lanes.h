// Many numbers at once, written like one.
//
// A `Lanes` holds one number of each of LANE_COUNT sub-blocks. Its operators do to every lane exactly
// what the scalar operator does, in the same order and with the same rounding, so that code over lanes
// gives the bits of the scalar code it was written after. Two things keep it so: the compiler is told
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

    friend INLINE Mask operator&(Mask a, Mask b) { Mask r; EVERY_PART r.part[p] = a.part[p] & b.part[p]; return r; }
    friend INLINE Mask operator|(Mask a, Mask b) { Mask r; EVERY_PART r.part[p] = a.part[p] | b.part[p]; return r; }
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
    bool yes = true;
    for (int l = 0; l < NATIVE_LANES; ++l) yes = yes && folded[l];
    return yes;
}

struct Lanes {
    Floats part[PART_COUNT];

    Lanes() = default;
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

INLINE Lanes nearest_wrapping(Lanes a) {
    EVERY_PART {
        const Ints bits = (Ints)(a.part[p] + ROUNDER);
        a.part[p] = __builtin_convertvector((bits & 0x007fffff) - 0x00400000, Floats);
    }
    return a;
}
