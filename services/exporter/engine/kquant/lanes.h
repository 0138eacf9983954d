// Many numbers at once, written like one.
//
// A `Lanes` holds one number of each of LANE_COUNT sub-blocks. Its operators do to every lane exactly
// what the scalar operator does, in the same order and with the same rounding, so that code over lanes
// gives the bits of the scalar code it was written after. Two things keep it so: the compiler is told
// -ffp-contract=off and never -ffast-math, and no operation here ever mixes lanes.
//
// Two native vectors a `Lanes` keep the adders busy while a sum waits for its last addition.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int NATIVE_LANES = 16;
#elif defined(__AVX__)
constexpr int NATIVE_LANES = 8;
#else
constexpr int NATIVE_LANES = 4;
#endif
constexpr int PART_COUNT = 2;
constexpr int LANE_COUNT = NATIVE_LANES * PART_COUNT;

typedef float Floats __attribute__((vector_size(NATIVE_LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(NATIVE_LANES * 4)));

#define EVERY_PART for (int p = 0; p < PART_COUNT; ++p)

// A yes or no of each lane.
struct Mask {
    Ints part[PART_COUNT];

    friend Mask operator&(Mask a, Mask b) { Mask r; EVERY_PART r.part[p] = a.part[p] & b.part[p]; return r; }
    friend Mask operator|(Mask a, Mask b) { Mask r; EVERY_PART r.part[p] = a.part[p] | b.part[p]; return r; }
    int32_t operator[](int lane) const { return part[lane / NATIVE_LANES][lane % NATIVE_LANES]; }
};

struct Lanes {
    Floats part[PART_COUNT];

    Lanes() = default;
    Lanes(float same) { EVERY_PART part[p] = same - Floats{}; }

    friend Lanes operator+(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] + b.part[p]; return a; }
    friend Lanes operator-(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] - b.part[p]; return a; }
    friend Lanes operator*(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] * b.part[p]; return a; }
    friend Lanes operator/(Lanes a, Lanes b) { EVERY_PART a.part[p] = a.part[p] / b.part[p]; return a; }
    Lanes & operator+=(Lanes b) { return *this = *this + b; }

    friend Mask operator<(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] < b.part[p]; return r; }
    friend Mask operator>(Lanes a, Lanes b) { return b < a; }
    friend Mask operator>=(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] >= b.part[p]; return r; }
    friend Mask operator==(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] == b.part[p]; return r; }
    friend Mask operator!=(Lanes a, Lanes b) { Mask r; EVERY_PART r.part[p] = a.part[p] != b.part[p]; return r; }

    float operator[](int lane) const { return part[lane / NATIVE_LANES][lane % NATIVE_LANES]; }
    void set(int lane, float value) { part[lane / NATIVE_LANES][lane % NATIVE_LANES] = value; }
};

// `yes` where the mask says so, `no` elsewhere.
inline Lanes choose(Mask mask, Lanes yes, Lanes no) {
    EVERY_PART yes.part[p] = mask.part[p] ? yes.part[p] : no.part[p];
    return yes;
}

// The smaller of two; `b` where a comparison with `a` is impossible.
inline Lanes smaller(Lanes a, Lanes b) { return choose(a < b, a, b); }
inline Lanes larger(Lanes a, Lanes b) { return choose(a > b, a, b); }

inline Lanes absolute(Lanes a) {
    EVERY_PART a.part[p] = (Floats)((Ints)a.part[p] & 0x7fffffff);
    return a;
}

inline Lanes root(Lanes a) {
    EVERY_PART for (int l = 0; l < NATIVE_LANES; ++l) a.part[p][l] = __builtin_sqrtf(a.part[p][l]);
    return a;
}

// 1.5 * 2^23: adding it leaves no room for a fraction, so that the sum is rounded to a whole number.
constexpr float ROUNDER = 12582912.f;

// The nearest whole number, ties to even, for |a| < 2^22.
inline Lanes nearest(Lanes a) { return (a + ROUNDER) - ROUNDER; }

// The same for any number, wrapping around beyond 2^22 as the reference's bit pattern does.
inline int32_t nearest_int(float a) {
    const float sum = a + ROUNDER;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

inline Lanes nearest_wrapping(Lanes a) {
    EVERY_PART {
        const Ints bits = (Ints)(a.part[p] + ROUNDER);
        a.part[p] = __builtin_convertvector((bits & 0x007fffff) - 0x00400000, Floats);
    }
    return a;
}
