// CA1, the canonical arithmetic: the same bits as `dsv4core/numerics`. Compiled without contraction; every
// statement below rounds as it is written, and loops over channels vectorise without changing a result.
#pragma once
#include "common.h"

namespace dsv4 {

constexpr int ROPE = 64;
constexpr float FLOOR_E4M3 = 1e-4f, FLOOR_OUTPUT = 1e-10f;
inline float floor_e2m1() { return number(0x01c00000); }  // 6 * 2^-126

// Rule 8: adding 2^(e + 23 - mantissa) to a magnitude leaves the wanted code in the low bits of the sum.
inline u32 encode_small(float x, int mantissa, int min_exponent, float limit, u32 sign_bit, int sign_shift) {
    const u32 b = bits(x);
    const i32 magnitude = std::min<i32>(b & 0x7fffffff, bits(limit));
    const int shift = 23 - mantissa;
    const i32 lowest = (min_exponent + 127) << 23;
    const i32 magic = std::max<i32>(magnitude & 0x7f800000, lowest) + (shift << 23);
    const i32 rounded = bits(number(magnitude) + number(magic));
    const i32 code = rounded - magic + (magic >> shift) - ((min_exponent + 127 + shift) << mantissa);
    return u32(code) | ((b >> sign_shift) & sign_bit);
}

inline u8 encode_e4m3(float x) { return u8(encode_small(x, 3, -6, 448.0f, 0x80, 24)); }
inline u8 encode_e2m1(float x) { return u8(encode_small(x, 1, 0, 6.0f, 8, 28)); }
inline u8 encode_fnuz(float x) {
    const u8 code = u8(encode_small(x, 3, -7, 224.0f, 0x80, 24));
    return code == 0x80 ? 0 : code;
}

// Rule 7: E from the bits of a positive normal amax.
inline int exponent_e4m3(float amax) {
    return int(bits(amax) >> 23) - 135 + ((bits(amax) & 0x7fffff) > 0x600000);
}
inline int exponent_e2m1(float amax) {
    return int(bits(amax) >> 23) - 129 + ((bits(amax) & 0x7fffff) > 0x400000);
}
inline u8 scale_byte(int exponent) { return u8(std::min(std::max(exponent + 127, 1), 254)); }
inline int byte_exponent(u8 byte) { return std::min(std::max(int(byte), 1), 254) - 127; }

// Largest magnitude. On bits, because the order of a float maximum would keep the loop from vectorising.
inline float largest(const float* x, int n) {
    i32 top = 0;
    for (int i = 0; i < n; i++) top = std::max<i32>(top, i32(bits(x[i]) & 0x7fffffff));
    return number(u32(top));
}

// Rule 2, for x <= 0.
inline float exp_nonpositive(float x) {
    const float z = x < -87.0f ? -87.0f : x;
    const float k = std::floor(z * 1.44269504f + 0.5f);
    float t = z - k * 0.693359375f;
    t = t - k * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * t + 1.3981999507e-3f;
    p = p * t + 8.3334519073e-3f;
    p = p * t + 4.1665795894e-2f;
    p = p * t + 1.6666665459e-1f;
    p = p * t + 5.0000001201e-1f;
    float y = p * (t * t);
    y = y + t;
    y = y + 1.0f;
    y = y * power_of_two(int(k));
    return x < -87.0f ? 0.0f : y;
}

// Rule 3: 1 / sqrt(mean(y^2) + eps), exact and independent of order. n is a multiple of 16, at most 32768:
// every lane sums at most 2^11 squares below 2^42, which a double holds exactly.
inline float inverse_rms(const float* y, int n, float eps) {
    constexpr int LANES = 16;
    const int exponent = std::max<int>(int(bits(largest(y, n)) >> 23), 30);
    const int k = 147 - exponent;
    const float up = power_of_two(k), back = power_of_two(-k);
    double lane[LANES] = {};
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const float grid = (y[i + j] * up + 12582912.0f) - 12582912.0f;
            lane[j] += double(grid) * double(grid);
        }
    i64 total = 0;
    for (int j = 0; j < LANES; j++) total += i64(lane[j]);
    const float mean = ((float(total) * back) * back) / float(n);
    return 1.0f / std::sqrt(mean + eps);
}

// Rule 5, pairs (2i, 2i + 1) in place; a table row is 32 cosines, then 32 sines.
template <bool INVERSE> inline void rotate(float* x, const float* cos_sin) {
    float even[ROPE / 2], odd[ROPE / 2];
    for (int i = 0; i < ROPE / 2; i++) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
    for (int i = 0; i < ROPE / 2; i++) {
        const float c = cos_sin[i], s = cos_sin[i + ROPE / 2];
        const float ec = even[i] * c, os = odd[i] * s, oc = odd[i] * c, es = even[i] * s;
        x[2 * i] = INVERSE ? ec + os : ec - os;
        x[2 * i + 1] = INVERSE ? oc - es : es + oc;
    }
}

// Rule 10: butterflies with strides 1, 2, ... 64, one multiplication; the caller rounds to bf16.
inline void hadamard128(float* x) {
    for (int stride = 1; stride < 128; stride *= 2) {
        float y[128];
        for (int i = 0; i < 128; i++) {
            const float other = x[i ^ stride];
            y[i] = i & stride ? other - x[i] : x[i] + other;
        }
        std::memcpy(x, y, sizeof y);
    }
    const float norm = float(0.08838834764831845);
    for (int i = 0; i < 128; i++) x[i] = x[i] * norm;
}

}  // namespace dsv4
