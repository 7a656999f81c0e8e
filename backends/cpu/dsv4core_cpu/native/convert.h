// Steps of page conversions on runs of bf16 words: codes to words, words to codes, f32 in and out. Every step
// gives the bytes that `CacheLayout` gives for usual data and says when it met something else.
#pragma once
#include "values.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI__)
#define DSV4_WIDE 1
#else
#define DSV4_WIDE 0
#endif

namespace dsv4 {

constexpr int INDEX = 128, MX = 32;
constexpr u16 INF_BF16 = 0x7f80, FLOOR_BF16 = 0x38d1;  // every amax near the floor 1e-4 has the same E
// UE8M0 bytes between which a code times its scale is a normal bf16.
constexpr int LOWEST = 20, HIGHEST = 246;
inline bool usual_scale(int byte) { return byte >= LOWEST && byte <= HIGHEST; }

inline bool all_zero(const u8* p, int n) {
    u64 any = 0;
    for (int i = 0; i < n; i += 4) {
        u32 w;
        std::memcpy(&w, p + i, 4);
        any |= w;
    }
    return any == 0;
}

// E of the scale of words whose largest magnitude is amax, for OCP e4m3.
inline int exponent_of(u16 amax) {
    const int floored = std::max(amax, FLOOR_BF16);
    return (floored >> 7) - 135 + ((floored & 0x7f) > 0x60);
}

#if DSV4_WIDE

struct alignas(64) WordOrder { u16 at[32]; };
struct alignas(64) ByteOrder { u8 at[64]; };
constexpr WordOrder upper_halves() { WordOrder o{}; for (int i = 0; i < 32; i++) o.at[i] = u16(2 * i + 1); return o; }
constexpr ByteOrder even_places() { ByteOrder o{}; for (int i = 0; i < 64; i++) o.at[i] = u8(2 * i); return o; }
constexpr WordOrder pair_values() {
    constexpr u16 magnitude[8] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
    WordOrder o{};
    for (int i = 0; i < 32; i++) o.at[i] = u16(magnitude[i & 7] | (i & 8) << 12);
    return o;
}
inline constexpr WordOrder UPPER = upper_halves(), PAIR_VALUES = pair_values();
inline constexpr ByteOrder EVEN = even_places();
inline const Decoder DECODER;

// e2m1 codes by exponent (3 bits, 0.25 is 1) and first two fraction bits of a magnitude: of the smallest such
// number, and of all others.
constexpr WordOrder pair_codes(bool smallest) {
    constexpr float middle[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    WordOrder o{};
    for (int i = 4; i < 32; i++) {
        const float x = float(4 + i % 4) * float(1 << (i / 4)) / 32.0f;
        for (int k = 0; k < 7; k++) o.at[i] += x > middle[k] || (x == middle[k] && (!smallest || k % 2));
    }
    return o;
}
inline constexpr WordOrder PAIR_CODES = pair_codes(false), PAIR_TIES = pair_codes(true);

// e4m3 of the 16 e2m1 codes, which a power of two moves by 8.
constexpr ByteOrder pair_bytes() {
    constexpr u8 code[8] = {0x00, 0x30, 0x38, 0x3c, 0x40, 0x44, 0x48, 0x4c};
    ByteOrder o{};
    for (int i = 0; i < 64; i++) o.at[i] = u8(code[i & 7] | (i & 8) << 4);
    return o;
}
inline constexpr ByteOrder PAIR_BYTES = pair_bytes();

// e4m3 codes below the normal ones times 2^d.
struct LowTables { alignas(64) u8 at[24][16]; };
constexpr LowTables low_tables() {
    LowTables t{};
    for (int d = 0; d < 24; d++)
        for (int c = 1; c < 8; c++) {
            int e = 1 + d, m = c;
            while (m < 8 && e > 1) m *= 2, e--;
            t.at[d][c] = u8(m < 8 ? m : e > 15 ? 0x7e : e << 3 | (m & 7));
        }
    return t;
}
inline constexpr LowTables LOW_TABLES = low_tables();

inline __m512i words(const u16* p) { return _mm512_loadu_si512(p); }
inline __m512i magnitude(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)); }

inline u16 top_word(__m512i x) {
    const __m256i y = _mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i z = _mm_max_epu16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    return u16(~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(z, _mm_set1_epi8(-1))), 0));
}

template <int N> inline u16 amax(const u16* v) {
    __m512i top = magnitude(words(v));
    for (int i = 32; i < N; i += 32) top = _mm512_max_epu16(top, magnitude(words(v + i)));
    return top_word(top);
}

template <int N> inline bool finite_words(const u16* v) {
    const __m512i inf = _mm512_set1_epi16(short(INF_BF16));
    __mmask32 bad = 0;
    for (int i = 0; i < N; i += 32) bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(words(v + i), inf), inf);
    return bad == 0;
}

template <int N> inline bool zero_words(const u16* v) {
    __m512i any = words(v);
    for (int i = 32; i < N; i += 32) any = _mm512_or_si512(any, words(v + i));
    return _mm512_test_epi64_mask(any, any) == 0;
}

// N codes, a multiple of 64, times 2^E. FNUZ codes are half of their OCP reading. -> whether none is special.
template <int N, bool FNUZ> inline bool decode_codes(const u8* codes, int exponent, u16* out) {
    const __m512i nan = _mm512_set1_epi8(0x7f), negative_zero = _mm512_set1_epi8(char(0x80));
    __mmask64 bad = 0;
    for (int i = 0; i < N; i += 64) {
        const __m512i c = _mm512_loadu_si512(codes + i);
        bad |= _mm512_cmpeq_epi8_mask(_mm512_and_si512(c, nan), nan);
        if (FNUZ) bad |= _mm512_cmpeq_epi8_mask(c, negative_zero);
        __m512i first, second;
        DECODER.plain(codes + i, first, second);
        _mm512_storeu_si512(out + i, Decoder::scaled(first, exponent - FNUZ));
        _mm512_storeu_si512(out + i + 32, Decoder::scaled(second, exponent - FNUZ));
    }
    return bad == 0;
}

// 16 bytes of e2m1 pairs times 2^E as 32 words.
inline void decode_pairs(const u8* pairs, int exponent, u16* out) {
    const __m512i d = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs)));
    const __m512i index = _mm512_or_si512(d, _mm512_slli_epi32(d, 12));  // five bits count, the table is doubled
    const __m512i x = _mm512_permutexvar_epi16(index, _mm512_load_si512(PAIR_VALUES.at));
    _mm512_storeu_si512(out, Decoder::scaled(x, exponent));
}

// Magnitudes m / 2^E rounded to a small float of M fraction bits whose normal numbers start at 2^LOW, without
// saturating: m has to be below 2^(E + 9), and E above -97. `lost` gets lanes that were not exact. RARE: numbers
// below the normal ones are, so a branch is cheaper than doing without.
template <int M, int LOW, bool RARE, bool EXACT>
inline __m512i round_words(__m512i m, __m512i base, __mmask32& lost) {
    constexpr int SHIFT = 7 - M;
    const __m512i one = _mm512_set1_epi16(1);
    if (RARE) {
        const __m512i v = _mm512_subs_epu16(m, base);
        const __mmask32 low = _mm512_cmplt_epi16_mask(v, _mm512_set1_epi16(128));
        if (__builtin_expect(_mm512_mask_test_epi16_mask(low, m, m) == 0, 1)) {
            const __m512i up = _mm512_add_epi16(v, _mm512_set1_epi16((1 << (SHIFT - 1)) - 1));
            const __mmask32 odd = _mm512_test_epi16_mask(v, _mm512_set1_epi16(1 << SHIFT));
            if (EXACT) lost |= _mm512_test_epi16_mask(v, _mm512_set1_epi16((1 << SHIFT) - 1));
            return _mm512_srli_epi16(_mm512_mask_add_epi16(up, odd, up, one), SHIFT);
        }
    }
    // Below the normal numbers the fraction with its leading 1 moves further; 16 places and more leave nothing.
    const __m512i relative = _mm512_sub_epi16(m, base);
    const __mmask32 low = _mm512_cmplt_epi16_mask(relative, _mm512_set1_epi16(128));
    const __m512i fraction = _mm512_ternarylogic_epi64(m, _mm512_set1_epi16(0x7f), _mm512_set1_epi16(0x80), 0xea);
    const __m512i v = _mm512_mask_mov_epi16(relative, low, fraction);
    const __m512i less = _mm512_min_epi16(_mm512_srai_epi16(relative, 7), one);
    const __m512i by = _mm512_sub_epi16(_mm512_set1_epi16(SHIFT + 1), less);
    const __m512i half = _mm512_sllv_epi16(one, _mm512_sub_epi16(_mm512_set1_epi16(SHIFT), less));
    const __m512i unit = _mm512_add_epi16(half, half);
    const __mmask32 odd = _mm512_test_epi16_mask(v, unit);
    if (EXACT)
        lost |= _mm512_mask_test_epi16_mask(_mm512_test_epi16_mask(m, m), v, _mm512_sub_epi16(unit, one));
    const __m512i up = _mm512_add_epi16(v, _mm512_sub_epi16(half, one));
    return _mm512_srlv_epi16(_mm512_mask_add_epi16(up, odd, up, one), by);
}
template <int LOW> inline __m512i base_of(int exponent) { return _mm512_set1_epi16(short((126 + LOW + exponent) << 7)); }

inline __m512i even_bytes(__m512i a, __m512i b) {
    return _mm512_permutex2var_epi8(a, _mm512_load_si512(EVEN.at), b);
}

// e4m3 codes of 64 words.
template <bool FNUZ, bool RARE, bool EXACT>
inline void encode_block(const u16* v, __m512i base, u8* out, __mmask32& lost) {
    const __m512i top = _mm512_set1_epi16(0x43e0);  // 448
    __m512i code[2];
    for (int j = 0; j < 2; j++) {
        const __m512i x = words(v + 32 * j);
        __m512i m = magnitude(x);
        if (!RARE && EXACT) lost |= _mm512_cmpgt_epi16_mask(m, top);
        if (!RARE) m = _mm512_min_epi16(m, top);
        const __m512i c = round_words<3, -6, RARE, EXACT>(m, base, lost);
        // c | (x >> 8 & 0x80)
        code[j] = _mm512_ternarylogic_epi64(c, _mm512_srli_epi16(x, 8), _mm512_set1_epi16(0x80), 0xf8);
    }
    __m512i c = even_bytes(code[0], code[1]);
    if (FNUZ) c = _mm512_maskz_mov_epi8(_mm512_cmpneq_epi8_mask(c, _mm512_set1_epi8(char(0x80))), c);
    _mm512_storeu_si512(out, c);
}

// e4m3 codes of N words / 2^E, where amax chose E; or, FIXED, saturating. -> with
// EXACT, whether every word came through.
template <int N, bool FIXED, bool EXACT> inline bool encode_codes(const u16* v, int exponent, u8* out) {
    __mmask32 lost = 0;
    for (int i = 0; i < N; i += 64) encode_block<false, !FIXED, EXACT>(v + i, base_of<-6>(exponent), out + i, lost);
    return lost == 0;
}

// Seven blocks of 64 words: codes and scale bytes. -> whether any magnitude is not 0.
template <bool FNUZ> inline bool encode_blocks(const u16* v, u8* codes, u8* scales) {
    __m512i t[8];
    for (int b = 0; b < 7; b++)
        t[b] = _mm512_max_epu16(magnitude(words(v + 64 * b)), magnitude(words(v + 64 * b + 32)));
    t[7] = t[6];
    // Eight maxima at once: interleaved until word b of every quarter belongs to block b.
    for (int b = 0; b < 8; b += 2)
        t[b] = _mm512_max_epu16(_mm512_unpacklo_epi16(t[b], t[b + 1]), _mm512_unpackhi_epi16(t[b], t[b + 1]));
    for (int b = 0; b < 8; b += 4)
        t[b] = _mm512_max_epu16(_mm512_unpacklo_epi32(t[b], t[b + 2]), _mm512_unpackhi_epi32(t[b], t[b + 2]));
    t[0] = _mm512_max_epu16(_mm512_unpacklo_epi64(t[0], t[4]), _mm512_unpackhi_epi64(t[0], t[4]));
    const __m256i y = _mm256_max_epu16(_mm512_castsi512_si256(t[0]), _mm512_extracti64x4_epi64(t[0], 1));
    const __m128i top = _mm_max_epu16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    // E + 127 of each, as `exponent_of`.
    const __m128i floored = _mm_max_epu16(top, _mm_set1_epi16(short(FLOOR_BF16)));
    const __mmask8 more = _mm_cmpgt_epi16_mask(_mm_and_si128(floored, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x60));
    const __m128i power = _mm_sub_epi16(_mm_srli_epi16(floored, 7), _mm_set1_epi16(8));
    const __m128i byte = _mm_mask_add_epi16(power, more, power, _mm_set1_epi16(1));
    const __m128i stored = FNUZ ? _mm_add_epi16(byte, _mm_set1_epi16(1)) : byte;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(scales), _mm_maskz_cvtepi16_epi8(0x7f, stored));
    const __m512i base = _mm512_castsi128_si512(_mm_slli_epi16(_mm_sub_epi16(byte, _mm_set1_epi16(7)), 7));
    __mmask32 lost = 0;
    for (int b = 0; b < 7; b++)
        encode_block<FNUZ, true, false>(v + 64 * b, _mm512_permutexvar_epi16(_mm512_set1_epi16(short(b)), base),
                                        codes + 64 * b, lost);
    return !_mm_testz_si128(top, top);
}

// e2m1 pairs of 32 words / 2^E. -> with EXACT, whether every word came through.
template <bool EXACT> inline bool encode_pairs(const u16* v, int exponent, u8* out) {
    __mmask32 lost = 0;
    const __m512i x = words(v);
    __m512i c;
    if (EXACT) {
        c = round_words<1, 0, false, true>(magnitude(x), base_of<0>(exponent), lost);
    } else {
        const __m512i m = _mm512_subs_epu16(magnitude(x), base_of<-2>(exponent));
        const __m512i at = _mm512_srli_epi16(m, 5);
        c = _mm512_permutexvar_epi16(at, _mm512_load_si512(PAIR_CODES.at));
        c = _mm512_mask_permutexvar_epi16(c, _mm512_testn_epi16_mask(m, _mm512_set1_epi16(31)), at,
                                          _mm512_load_si512(PAIR_TIES.at));
    }
    const __m512i code = _mm512_ternarylogic_epi64(c, _mm512_srli_epi16(x, 12), _mm512_set1_epi16(8), 0xf8);
    const __m512i pair = _mm512_or_si512(code, _mm512_srli_epi32(code, 12));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(pair));
    return lost == 0;
}

template <int N> inline void widen(const u16* v, float* out) {
    for (int i = 0; i < N; i += 16) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i));
        _mm512_storeu_si512(out + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
}

inline __m512i rounded(__m512i x) {  // the upper half of each number is its bf16
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
}

// -> whether every result is finite.
template <int N> inline bool narrow(const float* x, u16* out) {
#if defined(__AVX512BF16__)
    // The instruction takes subnormal numbers as 0.
    __mmask16 odd = 0;
    for (int i = 0; i < N; i += 32) {
        const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        odd |= _mm512_fpclass_ps_mask(a, 0xb9) | _mm512_fpclass_ps_mask(b, 0xb9);
        _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    if (__builtin_expect(odd == 0, 1)) return finite_words<N>(out);
#endif
    const __m512i bound = _mm512_set1_epi32(0x7f7f8000), mask = _mm512_set1_epi32(0x7fffffff);
    __mmask16 bad = 0;
    for (int i = 0; i < N; i += 32) {
        const __m512i a = _mm512_loadu_si512(x + i), b = _mm512_loadu_si512(x + i + 16);
        bad |= _mm512_cmpge_epi32_mask(_mm512_and_si512(a, mask), bound);
        bad |= _mm512_cmpge_epi32_mask(_mm512_and_si512(b, mask), bound);
        const __m512i both = _mm512_permutex2var_epi16(rounded(a), _mm512_load_si512(UPPER.at), rounded(b));
        _mm512_storeu_si512(out + i, both);
    }
    return bad == 0;
}

// e4m3 codes of 16 numbers, saturating.
inline __m128i codes_of(__m512 x) {
    const __m512i b = _mm512_castps_si512(x);
    const __m512i m = _mm512_min_epi32(_mm512_and_si512(b, _mm512_set1_epi32(0x7fffffff)), _mm512_set1_epi32(0x43e00000));
    const __m512i lowest = _mm512_set1_epi32(121 << 23);
    const __m512i power = _mm512_max_epi32(_mm512_and_si512(m, _mm512_set1_epi32(0x7f800000)), lowest);
    const __m512i magic = _mm512_add_epi32(power, _mm512_set1_epi32(20 << 23));
    const __m512i sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(m), _mm512_castsi512_ps(magic)));
    const __m512i base = _mm512_sub_epi32(_mm512_srli_epi32(power, 20), _mm512_set1_epi32(121 << 3));
    const __m512i code = _mm512_add_epi32(_mm512_sub_epi32(sum, magic), base);
    return _mm512_cvtepi32_epi8(
        _mm512_ternarylogic_epi64(code, _mm512_srli_epi32(b, 24), _mm512_set1_epi32(0x80), 0xf8));
}

// e4m3 codes of N numbers, saturating. -> whether all are finite.
template <int N> inline bool encode_floats(const float* x, u8* out) {
    __mmask16 bad = 0;
    for (int i = 0; i < N; i += 16) {
        const __m512 y = _mm512_loadu_ps(x + i);
        bad |= _mm512_fpclass_ps_mask(y, 0x99);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), codes_of(y));
    }
    return bad == 0;
}

// e4m3 codes of 128 words over S.
inline void encode_quotients(const u16* v, float scale, u8* out) {
    const __m512 s = _mm512_set1_ps(scale);
    for (int i = 0; i < INDEX; i += 16) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i));
        const __m512 x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), codes_of(_mm512_div_ps(x, s)));
    }
}

// Rule 10 on 128 words; rounded, in place. A product with 1 or -1 is exact, so fused sums are plain sums.
// -> whether every result is finite.
inline bool rotate_words(u16* v) {
    __m512 x[8];
    for (int i = 0; i < 8; i++) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + 16 * i));
        x[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
    }
    const auto signs = [](int stride) {
        return _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), stride == 2 ? 0xcccc : stride == 4 ? 0xf0f0 : 0xff00,
                                  _mm512_set1_ps(-1.0f));
    };
    const __m512 s2 = signs(2), s4 = signs(4), s8 = signs(8), one = _mm512_set1_ps(1.0f);
    for (int i = 0; i < 8; i++) {
        __m512 y = x[i];
        y = _mm512_fmsubadd_ps(_mm512_permute_ps(y, 0xb1), one, y);
        y = _mm512_fmadd_ps(y, s2, _mm512_permute_ps(y, 0x4e));
        y = _mm512_fmadd_ps(y, s4, _mm512_shuffle_f32x4(y, y, 0xb1));
        y = _mm512_fmadd_ps(y, s8, _mm512_shuffle_f32x4(y, y, 0x4e));
        x[i] = y;
    }
    for (int stride = 1; stride < 8; stride *= 2)
        for (int i = 0; i < 8; i++)
            if (!(i & stride)) {
                const __m512 a = x[i], b = x[i + stride];
                x[i] = _mm512_add_ps(a, b);
                x[i + stride] = _mm512_sub_ps(a, b);
            }
    alignas(64) float y[INDEX];
    for (int i = 0; i < 8; i++)
        _mm512_store_ps(y + 16 * i, _mm512_mul_ps(x[i], _mm512_set1_ps(float(0.08838834764831845))));
    return narrow<INDEX>(y, v);
}

inline u8 top_byte(__m512i x) {
    const __m256i y = _mm256_max_epu8(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i z = _mm_max_epu8(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_max_epu8(z, _mm_srli_epi16(z, 8));
    return u8(~_mm_extract_epi16(_mm_minpos_epu16(_mm_or_si128(_mm_xor_si128(z, _mm_set1_epi8(-1)), _mm_set1_epi16(short(0xff00)))), 0));
}

// 64 codes with scale 1 as codes with a scale of their own, without rounding. -> E + 127, or 0 for a NaN code.
template <bool FNUZ> inline int rescale_block(const u8* codes, u8* out) {
    const __m512i c = _mm512_loadu_si512(codes), m = _mm512_and_si512(c, _mm512_set1_epi8(0x7f));
    const u8 top = top_byte(m);
    if (top == 0x7f) return 0;
    const int exponent = exponent_of(code_table(false).bf16[top]);
    const __m512i moved = _mm512_add_epi8(m, _mm512_set1_epi8(char(-exponent << 3)));
    const __m512i low = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(LOW_TABLES.at[-exponent])));
    const __mmask64 tiny = _mm512_cmplt_epi8_mask(m, _mm512_set1_epi8(8));
    __m512i made = _mm512_mask_shuffle_epi8(moved, tiny, low, m);
    made = _mm512_ternarylogic_epi64(made, c, _mm512_set1_epi8(char(0x80)), 0xf8);
    if (FNUZ) made = _mm512_maskz_mov_epi8(_mm512_cmpneq_epi8_mask(made, _mm512_set1_epi8(char(0x80))), made);
    _mm512_storeu_si512(out, made);
    return exponent + 127;
}

// 128 e2m1 codes with scale bytes as e4m3 codes with one scale. -> its E + 127, or 0 where scales are too far
// apart for normal codes. A quarter of a vector is a block of 32.
inline int join_pairs(const u8* pairs, const u8* scales, u8* out) {
    const __m512i p = _mm512_loadu_si512(pairs), nibble = _mm512_set1_epi8(15), seven = _mm512_set1_epi8(7);
    const __m512i low = _mm512_and_si512(p, nibble), high = _mm512_and_si512(_mm512_srli_epi16(p, 4), nibble);
    __m512i top = _mm512_and_si512(_mm512_max_epu8(_mm512_and_si512(low, seven), _mm512_and_si512(high, seven)), seven);
    top = _mm512_max_epu8(top, _mm512_shuffle_epi32(top, _MM_PERM_BADC));
    top = _mm512_max_epu8(top, _mm512_shuffle_epi32(top, _MM_PERM_CDAB));
    top = _mm512_max_epu8(top, _mm512_srli_epi32(top, 16));
    top = _mm512_and_si512(_mm512_max_epu8(top, _mm512_srli_epi16(top, 8)), _mm512_set1_epi32(7));
    u32 word;
    std::memcpy(&word, scales, 4);
    const __m512i quarter = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m128i bytes = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(int(word)));
    const __m512i scale = _mm512_permutexvar_epi32(quarter, _mm512_castsi128_si512(bytes));
    const __mmask16 live = _mm512_test_epi32_mask(top, top);
    // The largest magnitude as a bf16, and from it the scale, as `exponent_of`.
    const __m512i value = _mm512_permutexvar_epi16(top, _mm512_load_si512(PAIR_VALUES.at));
    const __m512i power = _mm512_slli_epi32(_mm512_sub_epi32(scale, _mm512_set1_epi32(127)), 7);
    __m512i amax = _mm512_maskz_add_epi32(live, value, power);
    amax = _mm512_max_epi32(amax, _mm512_shuffle_i32x4(amax, amax, 0x4e));
    amax = _mm512_max_epi32(amax, _mm512_shuffle_i32x4(amax, amax, 0xb1));
    const int byte = exponent_of(u16(_mm_cvtsi128_si32(_mm512_castsi512_si128(amax)))) + 127;
    // Codes of 0.5 stay normal down to 2^-5; scales of real pages are far from the ends.
    const __m512i moved = _mm512_sub_epi32(scale, _mm512_set1_epi32(byte));
    const __mmask16 far = _mm512_cmplt_epi32_mask(moved, _mm512_set1_epi32(-5)) |
                          _mm512_cmpgt_epu32_mask(_mm512_sub_epi32(scale, _mm512_set1_epi32(2)), _mm512_set1_epi32(248));
    if (far & live) return 0;
    const __m512i by = _mm512_shuffle_epi8(_mm512_slli_epi32(moved, 3), _mm512_setzero_si512());
    const auto coded = [&](__m512i c) {
        const __m512i code = _mm512_shuffle_epi8(_mm512_load_si512(PAIR_BYTES.at), c);
        return _mm512_mask_add_epi8(code, _mm512_test_epi8_mask(c, seven), code, by);
    };
    const __m512i first = coded(_mm512_unpacklo_epi8(low, high)), second = coded(_mm512_unpackhi_epi8(low, high));
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), odd = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(first, even, second));
    _mm512_storeu_si512(out + 64, _mm512_permutex2var_epi64(first, odd, second));
    return byte;
}

#else

template <int N> inline u16 amax(const u16* v) {
    u16 top = 0;
    for (int i = 0; i < N; i++) top = std::max<u16>(top, v[i] & 0x7fff);
    return top;
}
template <int N> inline bool finite_words(const u16* v) { return amax<N>(v) < INF_BF16; }
template <int N> inline bool zero_words(const u16* v) {
    u16 any = 0;
    for (int i = 0; i < N; i++) any |= v[i];
    return any == 0;
}

template <int N, bool FNUZ> inline bool decode_codes(const u8* codes, int exponent, u16* out) {
    const float scale = power_of_two(exponent);
    u32 made[N];
    u32 bad = 0;
    for (int i = 0; i < N; i++) {
        const u32 c = codes[i], m = c & 0x7f;
        bad |= (m == 0x7f) | (FNUZ & (c == 0x80));
        const u32 tiny = m < 8;  // subnormal codes: (8 + m) 2^-9 less 2^-6
        const float x = number((m << 20) + ((120 + tiny) << 23)) - (tiny ? 0.015625f : 0.0f);
        made[i] = bits(x * (FNUZ ? 0.5f : 1.0f) * scale) | (c & 0x80) << 24;
    }
    for (int i = 0; i < N; i++) out[i] = u16(made[i] >> 16);
    return bad == 0;
}

inline void decode_pairs(const u8* pairs, int exponent, u16* out) {
    const float scale = power_of_two(exponent);
    u16 low[16], high[16];
    const auto value = [&](u32 c) {
        const u32 m = c & 7;
        const float x = m < 2 ? 0.5f * float(m) : number((m << 22) + (126 << 23));
        return u16((bits(x * scale) | (c & 8) << 28) >> 16);
    };
    for (int i = 0; i < 16; i++) low[i] = value(pairs[i] & 15), high[i] = value(pairs[i] >> 4);
    for (int i = 0; i < 16; i++) out[2 * i] = low[i], out[2 * i + 1] = high[i];
}

// Whether words are equal as numbers: zeros have two signs.
template <int N> inline bool equal_words(const u16* a, const u16* b) {
    u16 bad = 0;
    for (int i = 0; i < N; i++) bad |= u16(((a[i] | b[i]) & 0x7fff) ? a[i] ^ b[i] : 0);
    return bad == 0;
}

template <int N, bool FIXED, bool EXACT> inline bool encode_codes(const u16* v, int exponent, u8* out) {
    const float inverse = power_of_two(-exponent);
    u8 codes[N];
    for (int i = 0; i < N; i++) codes[i] = encode_e4m3(from_bf16(v[i]) * inverse);
    std::memcpy(out, codes, N);
    u16 back[N];
    return !EXACT || (decode_codes<N, false>(codes, exponent, back) && equal_words<N>(v, back));
}

template <bool FNUZ> inline bool encode_blocks(const u16* v, u8* codes, u8* scales) {
    u16 any = 0;
    for (int b = 0; b < NOPE / BLOCK; b++) {
        const u16 top = amax<BLOCK>(v + b * BLOCK);
        const int exponent = exponent_of(top);
        encode_codes<BLOCK, false, false>(v + b * BLOCK, exponent, codes + b * BLOCK);
        scales[b] = u8(exponent + 127 + FNUZ);
        any |= top;
    }
    scales[NOPE / BLOCK] = 0;
    for (int i = 0; FNUZ && i < NOPE; i++) codes[i] = codes[i] == 0x80 ? 0 : codes[i];
    return any != 0;
}

template <bool EXACT> inline bool encode_pairs(const u16* v, int exponent, u8* out) {
    const float inverse = power_of_two(-exponent);
    u8 nibble[32], pair[16];
    for (int i = 0; i < 32; i++) nibble[i] = encode_e2m1(from_bf16(v[i]) * inverse);
    for (int i = 0; i < 16; i++) pair[i] = u8(nibble[2 * i] | nibble[2 * i + 1] << 4);
    std::memcpy(out, pair, 16);
    u16 back[32];
    if (EXACT) decode_pairs(pair, exponent, back);
    return !EXACT || equal_words<32>(v, back);
}

template <int N> inline void widen(const u16* v, float* out) {
    float wide[N];
    for (int i = 0; i < N; i++) wide[i] = from_bf16(v[i]);
    std::memcpy(out, wide, sizeof wide);
}

template <int N> inline bool narrow(const float* x, u16* out) {
    u32 b[N];
    std::memcpy(b, x, sizeof b);
    u32 bad = 0;
    for (int i = 0; i < N; i++) {
        bad |= (b[i] & 0x7fffffff) >= 0x7f7f8000;
        out[i] = u16((b[i] + 0x7fff + ((b[i] >> 16) & 1)) >> 16);
    }
    return bad == 0;
}

template <int N> inline bool encode_floats(const float* x, u8* out) {
    float y[N];
    u8 codes[N];
    std::memcpy(y, x, sizeof y);
    u32 bad = 0;
    for (int i = 0; i < N; i++) {
        bad |= (bits(y[i]) & 0x7f800000) == 0x7f800000;
        codes[i] = encode_e4m3(y[i]);
    }
    std::memcpy(out, codes, N);
    return bad == 0;
}

inline void encode_quotients(const u16* v, float scale, u8* out) {
    u8 codes[INDEX];
    for (int i = 0; i < INDEX; i++) codes[i] = encode_e4m3(from_bf16(v[i]) / scale);
    std::memcpy(out, codes, INDEX);
}

inline bool rotate_words(u16* v) {
    float x[INDEX];
    for (int i = 0; i < INDEX; i++) x[i] = from_bf16(v[i]);
    hadamard128(x);
    return narrow<INDEX>(x, v);
}

#endif

}  // namespace dsv4
