// float16 in integer arithmetic: the same bits with and without instructions for it.

#pragma once

#include <cstdint>
#include <cstring>

// float16 bits of a float, rounded to nearest, ties to even; infinite when too large.
inline uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) {
        return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
    }
    if (magnitude < 0x38800000) {
        // A subnormal half counts in units of 2^-24: let the float adder round to them.
        float units;
        memcpy(&units, &magnitude, sizeof units);
        units += 0.5f;
        uint32_t rounded;
        memcpy(&rounded, &units, sizeof rounded);
        return sign | (rounded - 0x3f000000);
    }
    const uint32_t rebased = magnitude - (112u << 23);
    return sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13);
}

inline float from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 0x1f;
    const uint32_t mantissa = half & 0x3ff;
    uint32_t bits;
    if (exponent == 0) {
        const float magnitude = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &magnitude, sizeof bits);
    } else if (exponent == 0x1f) {
        bits = 0x7f800000 | (mantissa << 13);
    } else {
        bits = ((exponent + 112) << 23) | (mantissa << 13);
    }
    bits |= sign;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
