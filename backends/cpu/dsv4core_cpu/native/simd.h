// The few vector operations that the matrix kernels need, for the widest unit this file is compiled for.
// Matrix products have a bound instead of pinned bits, so they may fuse a product with its sum.
#pragma once
#include "common.h"

namespace dsv4 {

#if defined(__AVX512F__)
constexpr int LANES = 16;
using Vec = __m512;
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec round_even(Vec x) { return _mm512_roundscale_ps(x, 8); }
inline Vec times_power(Vec x, Vec k) { return _mm512_scalef_ps(x, k); }
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
using Vec = __m256;
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec round_even(Vec x) { return _mm256_round_ps(x, 8); }
inline Vec times_power(Vec x, Vec k) {  // k >= -126
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23)));
}
#else
constexpr int LANES = 4;
typedef float Vec __attribute__((vector_size(16)));
inline Vec all(float x) { return Vec{x, x, x, x}; }
inline Vec zero() { return Vec{}; }
inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec round_even(Vec x) { return (x + 12582912.0f) - 12582912.0f; }
inline Vec times_power(Vec x, Vec k) {
    typedef i32 Whole __attribute__((vector_size(16)));
    return x * (Vec)((__builtin_convertvector(k, Whole) + 127) << 23);
}
#endif

// exp(x) for x <= 0, within 2 ulp; below -87 it is 0 (softmax weights, never a cache byte).
inline Vec exp_fast(Vec x) {
    const Vec low = all(-87.0f);
    const Vec z = max(x, low);
    const Vec k = round_even(mul(z, all(1.44269504f)));
    Vec t = fma(k, all(-0.693359375f), z);
    t = fma(k, all(2.12194440e-4f), t);
    Vec p = all(1.9875691500e-4f);
    p = fma(p, t, all(1.3981999507e-3f));
    p = fma(p, t, all(8.3334519073e-3f));
    p = fma(p, t, all(4.1665795894e-2f));
    p = fma(p, t, all(1.6666665459e-1f));
    p = fma(p, t, all(5.0000001201e-1f));
    const Vec y = add(fma(p, mul(t, t), t), all(1.0f));
    return times_power(y, k);
}

}  // namespace dsv4
