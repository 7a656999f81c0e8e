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
struct Vec { float x[4]; };
#define DSV4_EACH(expression) Vec r; for (int i = 0; i < 4; i++) r.x[i] = expression; return r
inline Vec all(float v) { DSV4_EACH(v); }
inline Vec zero() { return all(0.0f); }
inline Vec load(const float* p) { DSV4_EACH(p[i]); }
inline void store(float* p, const Vec& v) { for (int i = 0; i < 4; i++) p[i] = v.x[i]; }
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) { DSV4_EACH(a.x[i] * b.x[i] + c.x[i]); }
inline Vec mul(const Vec& a, const Vec& b) { DSV4_EACH(a.x[i] * b.x[i]); }
inline Vec add(const Vec& a, const Vec& b) { DSV4_EACH(a.x[i] + b.x[i]); }
inline Vec max(const Vec& a, const Vec& b) { DSV4_EACH(a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
inline Vec round_even(const Vec& a) { DSV4_EACH((a.x[i] + 12582912.0f) - 12582912.0f); }
inline Vec times_power(const Vec& a, const Vec& k) { DSV4_EACH(a.x[i] * power_of_two(int(k.x[i]))); }
#undef DSV4_EACH
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
