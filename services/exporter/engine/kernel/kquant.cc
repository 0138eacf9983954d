// K-quants of ggml, byte for byte, many sub-blocks at a time.
//
// A K-quant stores 256 numbers as levels of 2 to 6 bits with a scale, and for some types a minimum, for
// every 16 or 32 of them. Finding good scales takes nearly all the time: each sub-block is tried with some
// twenty scales. Sub-blocks do not depend on each other, so that LANE_COUNT of them are searched side by
// side, each in its own lane, with the operations of every lane in the order of the reference.
//
// Source: the quantize_row_q*_K_ref functions of ggml/src/ggml-quants.c, whose results these are; the
// tests compare every byte. Numbers whose search would leave the range of exact rounding are left to
// the reference: their blocks are marked in `left`.

#include "half.h"
#include "lanes.h"

namespace {

constexpr int BLOCK = 256;
// Beyond this a number plus ROUNDER is no longer rounded to a whole number.
constexpr float LARGEST_LEVEL = 4194303.f;
// Below this, ggml takes a group of numbers for zeros.
constexpr float GROUP_EPSILON = 1e-15f;

int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// Levels of a block. They are found as whole numbers of full width and stored as bytes.
struct Levels {
    int32_t whole[BLOCK];

    // Levels of N numbers that lie one after another: the nearest whole numbers to `scaled` of them, kept
    // between `low` and `high` and counted from `low`.
    template <int N, class Scaled> INLINE void set(int first, const float * x, int low, int high, Scaled scaled) {
        for (int i = 0; i < N; i += NATIVE_LANES) {
            Floats numbers;
            memcpy(&numbers, x + first + i, sizeof numbers);
            Ints level = nearest_ints(scaled(numbers)) - low;
            level = level < 0 ? 0 : level;
            level = level > high - low ? high - low : level;
            memcpy(whole + first + i, &level, sizeof level);
        }
    }

    void to_bytes(uint8_t * bytes) const {
        for (int i = 0; i < BLOCK; ++i) bytes[i] = whole[i];
    }
};

// LANE_COUNT sub-blocks of N consecutive numbers: x[i] holds number i of every one of them.
template <int N> struct Tile {
    Lanes x[N];

    explicit Tile(const float * numbers) { lay_in_lanes<N>(numbers, x); }
};

// ---- Scale and minimum: Q2_K, Q4_K, Q5_K ----------------------------------------------------------

// What a search found for every lane. `level_scale` and `lowest` give back the levels it settled on;
// `is_exact` is false when a level was too large for exact rounding.
struct ScaleMin {
    Lanes scale;
    Lanes minimum;
    Lanes level_scale;
    Lanes lowest;
    bool is_exact;
};

// Parameters of ggml's make_qkx2_quants for one type.
template <int N_, int TOP_, int STEPS_, bool ABSOLUTE_> struct ScaleMinSearch {
    static constexpr int N = N_;            // numbers of a sub-block
    static constexpr int TOP = TOP_;        // highest level
    static constexpr int STEPS = STEPS_;    // scales that are tried, beyond the plain one
    static constexpr bool ABSOLUTE = ABSOLUTE_;  // errors count by their size, not by their square
};
using SearchQ2 = ScaleMinSearch<16, 3, 15, true>;
using SearchQ4 = ScaleMinSearch<32, 15, 20, false>;
using SearchQ5 = ScaleMinSearch<32, 31, 15, false>;

template <class S> INLINE Lanes level_of(Lanes x, Lanes level_scale, Lanes minimum) {
    return larger(smaller(nearest(level_scale * (x - minimum)), S::TOP), 0.f);
}

// Whether all levels of a lane are small enough for `nearest`; they lie between those of the two ends.
INLINE Mask rounds_exactly(Lanes level_scale, Lanes minimum, Lanes lowest, Lanes highest) {
    return (absolute(level_scale * (lowest - minimum)) < LARGEST_LEVEL) &
           (absolute(level_scale * (highest - minimum)) < LARGEST_LEVEL);
}

template <class S> INLINE Lanes weighted_error(const Lanes * x, const Lanes * w, const Lanes * level,
                                               Lanes scale, Lanes minimum) {
    Lanes total = 0.f;
    for (int i = 0; i < S::N; ++i) {
        const Lanes miss = scale * level[i] + minimum - x[i];
        total += w[i] * (S::ABSOLUTE ? absolute(miss) : miss * miss);
    }
    return total;
}

template <class S> ScaleMin search_scale_min(const Lanes * x, const Lanes * w, float first_offset) {
    constexpr int N = S::N;
    Lanes lowest = x[0], highest = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < N; ++i) {
        lowest = smaller(x[i], lowest);
        highest = larger(x[i], highest);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    // The minimum that is being improved; never above zero.
    Lanes minimum = choose(lowest > 0.f, 0.f, lowest);
    const Mask is_constant = highest == minimum;
    const Lanes first_minimum = minimum;

    Lanes level[N];
    Lanes level_scale = Lanes(S::TOP) / (highest - minimum);
    Mask is_exact = is_constant | rounds_exactly(level_scale, minimum, lowest, highest);
    for (int i = 0; i < N; ++i) level[i] = level_of<S>(x[i], level_scale, minimum);
    ScaleMin best{Lanes(1.f) / level_scale, minimum, level_scale, minimum, true};
    Lanes best_error = weighted_error<S>(x, w, level, best.scale, minimum);

    for (int step = 0; step <= S::STEPS; ++step) {
        level_scale = Lanes(first_offset + 0.1f * step + S::TOP) / (highest - minimum);
        is_exact = is_exact & (is_constant | rounds_exactly(level_scale, minimum, lowest, highest));
        Lanes sum_l = 0.f, sum_l2 = 0.f, sum_xl = 0.f;
        for (int i = 0; i < N; ++i) {
            const Lanes l = level_of<S>(x[i], level_scale, minimum);
            const Lanes wl = w[i] * l;
            level[i] = l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * x[i];
        }
        const Lanes determinant = sum_w * sum_l2 - sum_l * sum_l;
        Lanes new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        Lanes new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const Mask above_zero = new_minimum > 0.f;
        new_scale = choose(above_zero, sum_xl / sum_l2, new_scale);
        new_minimum = choose(above_zero, 0.f, new_minimum);

        const Lanes error = weighted_error<S>(x, w, level, new_scale, new_minimum);
        const Mask better = (determinant > 0.f) & (error < best_error);
        best_error = choose(better, error, best_error);
        best.scale = choose(better, new_scale, best.scale);
        best.level_scale = choose(better, level_scale, best.level_scale);
        best.lowest = choose(better, minimum, best.lowest);
        minimum = choose(better, new_minimum, minimum);
    }
    best.scale = choose(is_constant, 0.f, best.scale);
    best.minimum = Lanes(0.f) - choose(is_constant, first_minimum, minimum);
    best.level_scale = choose(is_constant, 0.f, best.level_scale);
    best.is_exact = all(is_exact);
    return best;
}

// Weights of Q4_K and Q5_K: size of the number plus the root mean square of its sub-block.
void weigh_by_mean_square(const Lanes * x, Lanes * w) {
    Lanes sum = 0.f;
    for (int i = 0; i < 32; ++i) sum += x[i] * x[i];
    const Lanes mean = root(sum / 32.f);
    for (int i = 0; i < 32; ++i) w[i] = mean + absolute(x[i]);
}

// Levels of one sub-block with its final scale. Where that scale is zero, the levels of the search stay.
template <int N> INLINE void level_numbers(const float * x, int first, float d, float dm, float level_scale,
                                          float lowest, int top, Levels * levels) {
    if (d != 0.f) {
        levels->set<N>(first, x, 0, top, [=](Floats numbers) { return (numbers + dm) / d; });
    } else {
        levels->set<N>(first, x, 0, top, [=](Floats numbers) { return level_scale * (numbers - lowest); });
    }
}

// ---- Q4_K and Q5_K: 8 sub-blocks of 32, scales and minima of 6 bits -------------------------------

// The 12 bytes of 8 scales and 8 minima, as levels of the largest of each; returns those two.
struct PackedScales {
    float scale_unit;
    float minimum_unit;
    uint8_t scale_level[8];
    uint8_t minimum_level[8];
};

PackedScales pack_scales(const float * scales, const float * minima, uint8_t * out) {
    float max_scale = 0, max_minimum = 0;
    for (int j = 0; j < 8; ++j) {
        if (scales[j] > max_scale) max_scale = scales[j];
        if (minima[j] > max_minimum) max_minimum = minima[j];
    }
    const float inverse_scale = max_scale > 0 ? 63.f / max_scale : 0.f;
    const float inverse_minimum = max_minimum > 0 ? 63.f / max_minimum : 0.f;
    PackedScales packed;
    packed.scale_unit = max_scale / 63.f;
    packed.minimum_unit = max_minimum / 63.f;
    for (int j = 0; j < 8; ++j) {
        const uint8_t s = nearest_int(inverse_scale * scales[j]);
        const uint8_t m = nearest_int(inverse_minimum * minima[j]);
        const uint8_t scale = packed.scale_level[j] = s < 63 ? s : 63;
        const uint8_t minimum = packed.minimum_level[j] = m < 63 ? m : 63;
        if (j < 4) {
            out[j] = scale;
            out[j + 4] = minimum;
        } else {
            out[j + 4] = (scale & 0xf) | ((minimum & 0xf) << 4);
            out[j - 4] |= (scale >> 4) << 6;
            out[j] |= (minimum >> 4) << 6;
        }
    }
    return packed;
}

void put_half(uint8_t * out, uint16_t half) { memcpy(out, &half, sizeof half); }

// Scales, units and levels of one block: 2 + 2 + 12 bytes at `out`, 256 levels at `level`.
template <class S> void settle_block(const float * x, const ScaleMin & found, int first_lane, uint8_t * out,
                                     uint8_t * level) {
    float scales[8], minima[8];
    for (int j = 0; j < 8; ++j) {
        scales[j] = found.scale[first_lane + j];
        minima[j] = found.minimum[first_lane + j];
    }
    const PackedScales packed = pack_scales(scales, minima, out + 4);
    const uint16_t scale_unit = to_half(packed.scale_unit), minimum_unit = to_half(packed.minimum_unit);
    put_half(out, scale_unit);
    put_half(out + 2, minimum_unit);
    Levels levels;
    for (int j = 0; j < 8; ++j) {
        const int lane = first_lane + j;
        level_numbers<32>(x, 32 * j, from_half(scale_unit) * packed.scale_level[j],
                          from_half(minimum_unit) * packed.minimum_level[j], found.level_scale[lane],
                          found.lowest[lane], S::TOP, &levels);
    }
    levels.to_bytes(level);
}

void write_q4(const float * x, const ScaleMin & found, int first_lane, uint8_t * out) {
    uint8_t level[BLOCK];
    settle_block<SearchQ4>(x, found, first_lane, out, level);
    uint8_t * low = out + 16;
    for (int j = 0; j < BLOCK; j += 64, low += 32) {
        for (int l = 0; l < 32; ++l) low[l] = level[j + l] | (level[j + l + 32] << 4);
    }
}

void write_q5(const float * x, const ScaleMin & found, int first_lane, uint8_t * out) {
    uint8_t level[BLOCK];
    settle_block<SearchQ5>(x, found, first_lane, out, level);
    uint8_t * high = out + 16;
    uint8_t * low = out + 48;
    memset(high, 0, 32);
    for (int j = 0, bit = 0; j < BLOCK; j += 64, bit += 2, low += 32) {
        for (int l = 0; l < 32; ++l) {
            const uint8_t a = level[j + l], b = level[j + l + 32];
            high[l] |= ((a >> 4) << bit) | ((b >> 4) << (bit + 1));
            low[l] = (a & 0xf) | ((b & 0xf) << 4);
        }
    }
}

// ---- Q2_K: 16 sub-blocks of 16, scales and minima of 4 bits ---------------------------------------

void write_q2(const float * x, const ScaleMin & found, int first_lane, uint8_t * out) {
    uint8_t * scale_bytes = out;
    float max_scale = 0, max_minimum = 0;
    for (int j = 0; j < 16; ++j) {
        if (found.scale[first_lane + j] > max_scale) max_scale = found.scale[first_lane + j];
        if (found.minimum[first_lane + j] > max_minimum) max_minimum = found.minimum[first_lane + j];
    }
    const float inverse_scale = max_scale > 0 ? 15.f / max_scale : 0.f;
    const float inverse_minimum = max_minimum > 0 ? 15.f / max_minimum : 0.f;
    for (int j = 0; j < 16; ++j) {
        const uint8_t scale = nearest_int(inverse_scale * found.scale[first_lane + j]);
        const uint8_t minimum = nearest_int(inverse_minimum * found.minimum[first_lane + j]);
        scale_bytes[j] = scale | (minimum << 4);
    }
    const uint16_t scale_unit = to_half(max_scale / 15.f), minimum_unit = to_half(max_minimum / 15.f);
    Levels levels;
    for (int j = 0; j < 16; ++j) {
        const int lane = first_lane + j;
        level_numbers<16>(x, 16 * j, from_half(scale_unit) * (scale_bytes[j] & 0xf),
                          from_half(minimum_unit) * (scale_bytes[j] >> 4), found.level_scale[lane],
                          found.lowest[lane], SearchQ2::TOP, &levels);
    }
    uint8_t level[BLOCK];
    levels.to_bytes(level);
    uint8_t * packed = out + 16;
    for (int j = 0; j < BLOCK; j += 128, packed += 32) {
        for (int l = 0; l < 32; ++l) {
            packed[l] = level[j + l] | (level[j + l + 32] << 2) | (level[j + l + 64] << 4) |
                        (level[j + l + 96] << 6);
        }
    }
    put_half(out + 80, scale_unit);
    put_half(out + 82, minimum_unit);
}

// ---- Q6_K: 16 sub-blocks of 16, signed scales of 8 bits, no minimum -------------------------------

// What the search found for every lane; `level_scale` gives back the levels it settled on.
struct ScaleOnly {
    Lanes scale;
    Lanes level_scale;
    static constexpr bool is_exact = true;  // levels are at most 32.9 by construction
};

// ggml's make_qx_quants with weights x*x and 32 levels on either side of zero.
ScaleOnly search_scale_q6(const Lanes * x) {
    constexpr int N = 16;
    constexpr float SIDE = 32.f;
    Lanes largest = 0.f, largest_size = 0.f;
    Lanes w[N], wx[N];
    for (int i = 0; i < N; ++i) {
        const Lanes size = absolute(x[i]);
        const Mask is_larger = size > largest_size;
        largest_size = choose(is_larger, size, largest_size);
        largest = choose(is_larger, x[i], largest);
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
    }
    ScaleOnly best;
    Lanes best_gain;
    // The plain scale first, then nine a little smaller and nine a little larger.
    for (int step = -10; step <= 9; ++step) {
        if (step == 0) continue;
        const bool is_plain = step == -10;
        const Lanes level_scale = Lanes(is_plain ? -SIDE : -(SIDE + 0.1f * step)) / largest;
        Lanes sum_lx = 0.f, sum_l2 = 0.f;
        for (int i = 0; i < N; ++i) {
            const Lanes l = larger(smaller(nearest(level_scale * x[i]), SIDE - 1), -SIDE);
            sum_lx += wx[i] * l;
            sum_l2 += w[i] * l * l;
        }
        const Mask is_possible = is_plain ? sum_l2 != 0.f : sum_l2 > 0.f;
        const Lanes scale = choose(is_possible, sum_lx / sum_l2, 0.f);
        if (is_plain) {
            best.scale = scale;
            best.level_scale = level_scale;
            best_gain = scale * sum_lx;
            continue;
        }
        const Mask better = is_possible & (sum_lx * sum_lx > best_gain * sum_l2);
        best.scale = choose(better, scale, best.scale);
        best.level_scale = choose(better, level_scale, best.level_scale);
        best_gain = choose(better, scale * sum_lx, best_gain);
    }
    const Mask is_zero = largest_size < GROUP_EPSILON;
    best.scale = choose(is_zero, 0.f, best.scale);
    return best;
}

void write_q6(const float * x, const ScaleOnly & found, int first_lane, uint8_t * out) {
    float max_scale = 0, max_size = 0;
    for (int j = 0; j < 16; ++j) {
        const float scale = found.scale[first_lane + j], size = __builtin_fabsf(scale);
        if (size > max_size) {
            max_size = size;
            max_scale = scale;
        }
    }
    if (max_size < GROUP_EPSILON) {
        memset(out, 0, 210);
        return;
    }
    uint8_t * low = out;
    uint8_t * high = out + 128;
    int8_t * scale_bytes = (int8_t *)(out + 192);
    const float inverse = -128.f / max_scale;
    const uint16_t unit = to_half(1 / inverse);
    put_half(out + 208, unit);
    Levels levels;
    for (int j = 0; j < 16; ++j) {
        const int lane = first_lane + j;
        const int scale = nearest_int(inverse * found.scale[lane]);
        scale_bytes[j] = scale < 127 ? scale : 127;
        const float d = from_half(unit) * scale_bytes[j];
        const float level_scale = found.level_scale[lane];
        if (d != 0.f) {
            levels.set<16>(16 * j, x, -32, 31, [=](Floats numbers) { return numbers / d; });
        } else if (found.scale[lane] == 0.f) {
            // A group of zeros has levels of zero until its scale gives others.
            memset(levels.whole + 16 * j, 0, 16 * sizeof levels.whole[0]);
        } else {
            levels.set<16>(16 * j, x, -32, 31, [=](Floats numbers) { return level_scale * numbers; });
        }
    }
    uint8_t level[BLOCK];
    levels.to_bytes(level);
    for (int j = 0; j < BLOCK; j += 128, low += 64, high += 32) {
        for (int l = 0; l < 32; ++l) {
            const uint8_t a = level[j + l], b = level[j + l + 32], c = level[j + l + 64], e = level[j + l + 96];
            low[l] = (a & 0xf) | ((c & 0xf) << 4);
            low[l + 32] = (b & 0xf) | ((e & 0xf) << 4);
            high[l] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6);
        }
    }
}

// ---- Q3_K: 16 sub-blocks of 16, signed scales of 6 bits, no minimum -------------------------------

// What the search found: the scale, and the levels from -4 to 3, number by number.
struct ScaleLevels {
    Lanes scale;
    Lanes level[16];
    static constexpr bool is_exact = true;  // rounding wraps around as the reference's does
};

// Numbers of a level between which no other level is nearer, a little less than all of them: rounding
// moves a quotient by far less than the margin. The outermost levels have all numbers beyond them, up
// to where the reference's rounding wraps around.
struct Between {
    Lanes low, high;

    INLINE void set(Lanes level) {
        constexpr float HALF = 0.4999f, FAR = 2e6f;
        low = choose(level > -4.f, level - HALF, -FAR);
        high = choose(level < 3.f, level + HALF, FAR);
    }
};

// ggml's make_q3_quants: start from the plain scale, then move single levels while that helps.
ScaleLevels search_scale_q3(const Lanes * x) {
    constexpr int N = 16;
    constexpr float SIDE = 4.f;
    constexpr int ROUNDS = 5;
    // Below this, products lose their relative precision.
    constexpr float SMALL = 1e-30f;
    Lanes largest = 0.f, largest_size = 0.f;
    Lanes w[N], wx[N];
    for (int i = 0; i < N; ++i) {
        const Lanes size = absolute(x[i]);
        const Mask is_larger = size > largest_size;
        largest_size = choose(is_larger, size, largest_size);
        largest = choose(is_larger, x[i], largest);
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
    }
    ScaleLevels found;
    Lanes * level = found.level;
    // What each number adds to the two sums.
    Lanes lx[N], l2[N];
    Between kept[N];
    const Lanes level_scale = Lanes(-SIDE) / largest;
    Lanes sum_lx = 0.f, sum_l2 = 0.f;
    for (int i = 0; i < N; ++i) {
        level[i] = larger(smaller(nearest(level_scale * x[i]), SIDE - 1), -SIDE);
        lx[i] = wx[i] * level[i];
        l2[i] = w[i] * level[i] * level[i];
        kept[i].set(level[i]);
        sum_lx += lx[i];
        sum_l2 += l2[i];
    }
    // A round that changes nothing in a lane changes nothing later, so that rounds need not be counted by
    // lane; when no lane has changed, none will. Few numbers want another level, and most are known to
    // keep theirs without the division that finds it.
    for (int round = 0; round < ROUNDS; ++round) {
        bool has_moved = false;
        for (int i = 0; i < N; ++i) {
            const Lanes other_lx = sum_lx - lx[i];
            const Lanes other_l2 = sum_l2 - l2[i];
            const Lanes numerator = x[i] * other_l2;
            const Mask is_kept = (other_lx > SMALL) & (numerator > kept[i].low * other_lx) &
                                 (numerator < kept[i].high * other_lx);
            if (!any((other_lx > 0.f) & !is_kept)) continue;
            const Lanes wanted = nearest_wrapping(numerator / other_lx);
            const Lanes moved = larger(smaller(wanted, SIDE - 1), -SIDE);
            const Lanes moved_lx = wx[i] * moved, moved_l2 = w[i] * moved * moved;
            const Lanes new_lx = other_lx + moved_lx, new_l2 = other_l2 + moved_l2;
            const Mask better = (other_lx > 0.f) & (moved != level[i]) & (new_l2 > 0.f) &
                                (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2);
            if (!any(better)) continue;
            has_moved = true;
            level[i] = choose(better, moved, level[i]);
            lx[i] = choose(better, moved_lx, lx[i]);
            l2[i] = choose(better, moved_l2, l2[i]);
            kept[i].set(level[i]);
            sum_lx = choose(better, new_lx, sum_lx);
            sum_l2 = choose(better, new_l2, sum_l2);
        }
        if (!has_moved) break;
    }
    found.scale = choose(sum_l2 > 0.f, sum_lx / sum_l2, 0.f);
    const Mask is_zero = largest_size < GROUP_EPSILON;
    found.scale = choose(is_zero, 0.f, found.scale);
    // Groups of zeros keep level 0 of the stored, unsigned kind.
    for (int i = 0; i < N; ++i) level[i] = choose(is_zero, -SIDE, level[i]);
    return found;
}

void write_q3(const float * x, const ScaleLevels & found, int first_lane, uint8_t * out) {
    uint8_t * packed = out + 32;
    uint8_t * scale_bytes = out + 96;
    float max_scale = 0, max_size = 0;
    for (int j = 0; j < 16; ++j) {
        const float scale = found.scale[first_lane + j], size = __builtin_fabsf(scale);
        if (size > max_size) {
            max_size = size;
            max_scale = scale;
        }
    }
    int scale_level[16] = {0};
    uint16_t unit = 0;
    memset(scale_bytes, 0, 12);
    if (max_scale != 0.f) {
        const float inverse = -32.f / max_scale;
        unit = to_half(1 / inverse);
        for (int j = 0; j < 16; ++j) {
            const int8_t nearest_level = nearest_int(inverse * found.scale[first_lane + j]);
            scale_level[j] = clamp(nearest_level, -32, 31) + 32;
        }
        for (int j = 0; j < 8; ++j) scale_bytes[j] = (scale_level[j] & 0xf) | ((scale_level[j + 8] & 0xf) << 4);
        for (int j = 0; j < 4; ++j) {
            scale_bytes[8 + j] = (scale_level[j] >> 4) | ((scale_level[j + 4] >> 4) << 2) |
                                 ((scale_level[j + 8] >> 4) << 4) | ((scale_level[j + 12] >> 4) << 6);
        }
    }
    put_half(out + 108, unit);
    Levels levels;
    for (int j = 0; j < 16; ++j) {
        const float d = from_half(unit) * (scale_level[j] - 32);
        if (d != 0.f) {
            levels.set<16>(16 * j, x, -4, 3, [=](Floats numbers) { return numbers / d; });
        } else {
            for (int i = 0; i < 16; ++i) levels.whole[16 * j + i] = (int)found.level[i][first_lane + j] + 4;
        }
    }
    uint8_t level[BLOCK], high[32];
    levels.to_bytes(level);
    for (int l = 0; l < 32; ++l) {
        uint8_t bits = 0;
        for (int bit = 0; bit < 8; ++bit) bits |= (level[32 * bit + l] >> 2) << bit;
        high[l] = bits;
    }
    memcpy(out, high, sizeof high);
    for (int i = 0; i < BLOCK; ++i) level[i] &= 3;
    for (int j = 0; j < BLOCK; j += 128, packed += 32) {
        for (int l = 0; l < 32; ++l) {
            packed[l] = level[j + l] | (level[j + l + 32] << 2) | (level[j + l + 64] << 4) |
                        (level[j + l + 96] << 6);
        }
    }
}

// ---- Types ----------------------------------------------------------------------------------------

// One type: what a tile of N-sized sub-blocks becomes.
struct Q2 {
    static constexpr int N = 16, BYTES = 84;
    static ScaleMin search(const Tile<N> & tile) {
        Lanes w[N];
        for (int i = 0; i < N; ++i) w[i] = absolute(tile.x[i]);
        return search_scale_min<SearchQ2>(tile.x, w, -0.5f);
    }
    static constexpr auto write = write_q2;
};
struct Q3 {
    static constexpr int N = 16, BYTES = 110;
    static ScaleLevels search(const Tile<N> & tile) { return search_scale_q3(tile.x); }
    static constexpr auto write = write_q3;
};
struct Q4 {
    static constexpr int N = 32, BYTES = 144;
    static ScaleMin search(const Tile<N> & tile) {
        Lanes w[N];
        weigh_by_mean_square(tile.x, w);
        return search_scale_min<SearchQ4>(tile.x, w, -1.f);
    }
    static constexpr auto write = write_q4;
};
struct Q5 {
    static constexpr int N = 32, BYTES = 176;
    static ScaleMin search(const Tile<N> & tile) {
        Lanes w[N];
        weigh_by_mean_square(tile.x, w);
        return search_scale_min<SearchQ5>(tile.x, w, -0.5f);
    }
    static constexpr auto write = write_q5;
};
struct Q6 {
    static constexpr int N = 16, BYTES = 210;
    static ScaleOnly search(const Tile<N> & tile) { return search_scale_q6(tile.x); }
    static constexpr auto write = write_q6;
};

// Encodes blocks of 256 numbers tile by tile; a tile whose search was not exact is left to the reference.
template <class T> void encode(const float * x, uint8_t * out, int64_t block_count, uint8_t * left) {
    constexpr int BLOCKS = LANE_COUNT * T::N / BLOCK;
    constexpr int LANES_A_BLOCK = BLOCK / T::N;
    static_assert(LANE_COUNT % LANES_A_BLOCK == 0, "a tile holds whole blocks");
    for (int64_t block = 0; block < block_count; block += BLOCKS) {
        const int64_t here = block_count - block < BLOCKS ? block_count - block : BLOCKS;
        float padded[BLOCKS * BLOCK];
        const float * numbers = x + block * BLOCK;
        if (here < BLOCKS) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, numbers, here * BLOCK * sizeof(float));
            numbers = padded;
        }
        const Tile<T::N> tile(numbers);
        const auto found = T::search(tile);
        memset(left + block, !found.is_exact, here);
        if (!found.is_exact) continue;
        for (int64_t b = 0; b < here; ++b) {
            T::write(numbers + b * BLOCK, found, b * LANES_A_BLOCK, out + (block + b) * T::BYTES);
        }
    }
}

}  // namespace

// Encodes `block_count` blocks of 256 finite numbers as the ggml type of that number. Blocks that are left
// to the reference have `left` set to 1. Returns 0, or 1 when the type is not one of ours.
extern "C" int kquant_encode(int type, const float * x, uint8_t * out, int64_t block_count, uint8_t * left) {
    switch (type) {
        case 10: encode<Q2>(x, out, block_count, left); return 0;
        case 11: encode<Q3>(x, out, block_count, left); return 0;
        case 12: encode<Q4>(x, out, block_count, left); return 0;
        case 13: encode<Q5>(x, out, block_count, left); return 0;
        case 14: encode<Q6>(x, out, block_count, left); return 0;
        default: return 1;
    }
}

// Lanes of this build, for the log.
extern "C" int kquant_lanes() { return LANE_COUNT; }
