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

// Sixteen (eight) numbers at once in the compiler's own vectors: every machine's code comes from these lines.
typedef float F16 __attribute__((vector_size(64)));
typedef i32 I16 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));
typedef double D8 __attribute__((vector_size(64)));
template <class V> inline V unaligned(const float* p) { V v; std::memcpy(&v, p, sizeof v); return v; }

// floor(x) and x * 2^k for whole k >= -126, both exact.
inline F16 rounded_down(F16 x) {
#if defined(__AVX512F__)
    return (F16)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
    const F16 cut = __builtin_convertvector(__builtin_convertvector(x, I16), F16);
    return cut > x ? cut - 1.0f : cut;
#endif
}
// x - k * c, where k * c is exact.
inline F16 less_product(F16 x, F16 k, float c) {
#if defined(__AVX512F__)
    return (F16)_mm512_fnmadd_ps((__m512)k, _mm512_set1_ps(c), (__m512)x);
#else
    return x - k * c;
#endif
}
inline F16 scaled_by(F16 x, F16 k) {
#if defined(__AVX512F__)
    return (F16)_mm512_scalef_ps((__m512)x, (__m512)k);
#else
    return x * (F16)((__builtin_convertvector(k, I16) + 127) << 23);
#endif
}

// Rule 2 for N vectors x <= 0 in place. Step by step for all of them: one chain of dependent operations after
// the other would fill a processor's queues with waiting. Below -87 anything may come out until the last line.
template <int N> inline void exp_nonpositive(F16 (&x)[N]) {
    F16 k[N], t[N], p[N];
#define DSV4_ALL _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)
    DSV4_ALL k[i] = x[i] * 1.44269504f;
    DSV4_ALL k[i] = rounded_down(k[i] + 0.5f);
    DSV4_ALL t[i] = less_product(x[i], k[i], 0.693359375f);
    DSV4_ALL t[i] = t[i] - k[i] * -2.12194440e-4f;
    DSV4_ALL p[i] = t[i] * 1.9875691500e-4f;
    DSV4_ALL p[i] = p[i] + 1.3981999507e-3f;
    DSV4_ALL p[i] = p[i] * t[i];
    DSV4_ALL p[i] = p[i] + 8.3334519073e-3f;
    DSV4_ALL p[i] = p[i] * t[i];
    DSV4_ALL p[i] = p[i] + 4.1665795894e-2f;
    DSV4_ALL p[i] = p[i] * t[i];
    DSV4_ALL p[i] = p[i] + 1.6666665459e-1f;
    DSV4_ALL p[i] = p[i] * t[i];
    DSV4_ALL p[i] = p[i] + 5.0000001201e-1f;
    DSV4_ALL p[i] = p[i] * (t[i] * t[i]);
    DSV4_ALL p[i] = p[i] + t[i];
    DSV4_ALL p[i] = p[i] + 1.0f;
    DSV4_ALL x[i] = x[i] < -87.0f ? F16{} : scaled_by(p[i], k[i]);
#undef DSV4_ALL
}

// Rule 3: 1 / sqrt(mean(y^2) + eps), exact and independent of order. y has zeros up to a multiple of 16, n is
// at most 32768: every lane sums at most 2^11 squares below 2^42, which a double holds exactly.
inline float inverse_rms(const float* y, int n, float eps) {
    const int exponent = std::max<int>(int(bits(largest(y, n)) >> 23), 30);
    const int k = 147 - exponent;
    const float up = power_of_two(k), back = power_of_two(-k);
    D8 low = {}, high = {};
    for (int i = 0; i < n; i += 16) {
        const F8 a = (unaligned<F8>(y + i) * up + 12582912.0f) - 12582912.0f;
        const F8 b = (unaligned<F8>(y + i + 8) * up + 12582912.0f) - 12582912.0f;
        const D8 c = __builtin_convertvector(a, D8), d = __builtin_convertvector(b, D8);
        low = low + c * c;
        high = high + d * d;
    }
    i64 total = 0;
    for (int j = 0; j < 8; j++) total += i64(low[j]) + i64(high[j]);
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
