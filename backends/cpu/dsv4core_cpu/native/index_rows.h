// Index rows and queries (128 channels) out of their codes, with one factor per row that stays apart.
#pragma once
#include "rows.h"
#include "simd.h"

namespace dsv4 {

constexpr int INDEX_DIM = 128, MX_BLOCK = 32, MX_BLOCKS = INDEX_DIM / MX_BLOCK;
// Blocks of a row whose scales differ by more than 2^50 could lose products in f32: the caller has to know.
constexpr int WIDEST = 50;

inline u16 e2m1_bf16(int code) {
    static const u16 magnitude[8] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
    return u16(magnitude[code & 7] | (code & 8) << 12);
}

// Exponents of a row's blocks relative to the largest, whose power is the factor. Blocks of zeros do not count.
// -> whether the scales are close enough.
inline bool mxfp4_scales(const u8* codes, const u8* scales, int (&down)[MX_BLOCKS], float& factor) {
    int top = -126;
    bool live[MX_BLOCKS], close = true;
    for (int b = 0; b < MX_BLOCKS; b++) {
        u64 words[2];
        std::memcpy(words, codes + b * (MX_BLOCK / 2), sizeof words);
        live[b] = ((words[0] | words[1]) & 0x7777777777777777ull) != 0;
        if (live[b]) top = std::max(top, byte_exponent(scales[b]));
    }
    for (int b = 0; b < MX_BLOCKS; b++) {
        down[b] = live[b] ? byte_exponent(scales[b]) - top : 0;
        close &= down[b] >= -WIDEST;
    }
    factor = power_of_two(top);
    return close;
}

// 64 bytes of e2m1 pairs and 4 scale bytes: bf16 without the factor. -> whether the scales are close enough.
inline bool mxfp4_row(const u8* codes, const u8* scales, u16* out, float& factor) {
    int down[MX_BLOCKS];
    const bool close = mxfp4_scales(codes, scales, down, factor);
    for (int b = 0; b < MX_BLOCKS; b++) {
#if defined(__AVX512BW__)
        alignas(64) static const u16 table[32] = {
            0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
            0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + b * (MX_BLOCK / 2)));
        const __m512i pair = _mm512_cvtepu8_epi32(packed);
        const __m512i low = _mm512_and_si512(pair, _mm512_set1_epi32(15));
        const __m512i high = _mm512_and_si512(_mm512_slli_epi32(pair, 12), _mm512_set1_epi32(15 << 16));
        const __m512i value = _mm512_permutexvar_epi16(_mm512_or_si512(low, high), _mm512_load_si512(table));
        const __mmask32 some = _mm512_test_epi16_mask(value, _mm512_set1_epi16(0x7fff));
        _mm512_storeu_si512(out + b * MX_BLOCK,
                            _mm512_mask_add_epi16(value, some, value, _mm512_set1_epi16(short(down[b] * 128))));
#else
        for (int i = 0; i < MX_BLOCK; i++) {
            const u8 pair = codes[(b * MX_BLOCK + i) / 2];
            const u16 value = e2m1_bf16(i % 2 ? pair >> 4 : pair & 15);
            out[b * MX_BLOCK + i] = u16(value & 0x7fff ? value + down[b] * 128 : value);
        }
#endif
    }
    return close;
}

inline void e4m3_row(const u8* codes, u16* out) {
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
    static const Decoder decoder;
    for (int b = 0; b < INDEX_DIM; b += 64) {
        __m512i first, second;
        decoder.plain(codes + b, first, second);
        _mm512_storeu_si512(out + b, first);
        _mm512_storeu_si512(out + b + 32, second);
    }
#else
    const u16* table = code_table(false).bf16;
    for (int i = 0; i < INDEX_DIM; i++) out[i] = table[codes[i]];
#endif
}

// One key. -> whether it can be used.
inline bool index_row(int layout, const u8* front, const u8* tail, u16* out, float& factor) {
    if (layout == INDEX_MXFP4) return mxfp4_row(front, tail, out, factor);
    e4m3_row(front, out);
    if (layout == INDEX_FP8_UE8M0X4)
        factor = power_of_two(byte_exponent(tail[0]));
    else
        std::memcpy(&factor, tail, 4);
    return true;
}

// Sums over the lanes of 16 (or LANES) vectors, one per result.
inline void sum_lanes(const float* parts, float* sums) {
#if defined(__AVX512F__)
    __m512 t[8], u[4];
    for (int i = 0; i < 8; i++) {
        const __m512 a = load(parts + 32 * i), b = load(parts + 32 * i + 16);
        t[i] = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; i++) {
        const __m512d a = _mm512_castps_pd(t[2 * i]), b = _mm512_castps_pd(t[2 * i + 1]);
        u[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const __m512 v = add(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
    const __m512 w = add(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
    store(sums, add(_mm512_shuffle_f32x4(v, w, 0x88), _mm512_shuffle_f32x4(v, w, 0xdd)));
#else
    for (int i = 0; i < LANES; i++) {
        float sum = 0;
        for (int j = 0; j < LANES; j++) sum += parts[i * LANES + j];
        sums[i] = sum;
    }
#endif
}

}  // namespace dsv4
