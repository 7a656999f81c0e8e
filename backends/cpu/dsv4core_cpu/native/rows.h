// Main rows (512 values) out of their bytes: to bf16 or to f32, exactly as `CacheLayout.decode` rounds.
#pragma once
#include "ca1.h"

namespace dsv4 {

constexpr int DIM = 512, NOPE = 448, BLOCK = 64;

struct Row { const u8 *front, *tail; };

// Values of the 256 codes, as f32 and as bf16 (which is exact).
struct CodeTable {
    float f32[256];
    u16 bf16[256];
};

inline const CodeTable& code_table(bool fnuz) {
    static const auto make = [](bool fnuz) {
        CodeTable t;
        for (int code = 0; code < 256; code++) {
            const int e = (code >> 3) & 15, m = code & 7;
            float x = e ? float(8 + m) * power_of_two(e - 10) : float(m) * power_of_two(-9);
            if (fnuz) x *= 0.5f;
            if (!fnuz && (code & 0x7f) == 0x7f) x = number(0x7fc00000);
            x = code & 0x80 ? -x : x;
            if (fnuz && code == 0x80) x = number(0x7fc00000);
            t.f32[code] = x;
            t.bf16[code] = u16(bits(x) >> 16);
        }
        return t;
    };
    static const CodeTable ocp = make(false), amd = make(true);
    return fnuz ? amd : ocp;
}

// BLOCK codes times a scale. By arithmetic, because look-ups do not vectorise, and without subnormal numbers on
// the way, because a process may have switched them off.
template <bool FNUZ> inline void codes_to_f32(const u8* codes, float scale, float* out) {
    for (int i = 0; i < BLOCK; i++) {
        const i32 code = codes[i], e = (code >> 3) & 15, m = code & 7;
        const i32 fraction = e ? m + 8 : m, power = (e ? e : 1) + 127 - (FNUZ ? 11 : 10);
        const float x = float(fraction) * number(u32(power) << 23) * scale;
        const bool nan = FNUZ ? code == 0x80 : (code & 0x7f) == 0x7f;
        out[i] = number(nan ? 0x7fc00000 : bits(x) | u32(code & 0x80) << 24);
    }
}

// A row as f32 values that fit bf16.
inline void row_to_f32(int layout, Row row, float* out) {
    const int blocks = layout == BF16_ROW ? 0 : layout == FP8_ROW ? DIM / BLOCK : NOPE / BLOCK;
    for (int b = 0; b < blocks; b++) {
        const int exponent = layout == FP8_ROW ? 0 : byte_exponent(row.tail[b]);
        float* to = out + b * BLOCK;
        if (layout == FP8_DS_MLA_FNUZ)
            codes_to_f32<true>(row.front + b * BLOCK, power_of_two(exponent), to);
        else
            codes_to_f32<false>(row.front + b * BLOCK, power_of_two(exponent), to);
        if (exponent < -100 || exponent > 100)  // elsewhere the product fits bf16 as it is
            for (int i = 0; i < BLOCK; i++) to[i] = from_bf16(to_bf16(to[i]));
    }
    for (int i = blocks * BLOCK; i < DIM; i++) {
        u16 word;
        std::memcpy(&word, row.front + blocks * BLOCK + 2 * (i - blocks * BLOCK), 2);
        out[i] = from_bf16(word);
    }
}

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
// 64 e4m3 codes at once: the two bytes of a bf16 out of two tables of 128, then 2^E on top of the exponent.
struct Decoder {
    __m512i high[2], low[2], order, exact;

    Decoder() {
        alignas(64) u8 h[128], l[128];
        const CodeTable& table = code_table(false);
        for (int i = 0; i < 128; i++) h[i] = u8(table.bf16[i] >> 8), l[i] = u8(table.bf16[i]);
        for (int i = 0; i < 2; i++) {
            high[i] = _mm512_load_si512(h + 64 * i);
            low[i] = _mm512_load_si512(l + 64 * i);
        }
        // Interleaving bytes works within 128-bit lanes, so the quarters are put in this order first.
        order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    }

    // Without a scale: bf16 of the codes.
    void plain(const u8* codes, __m512i& first, __m512i& second) const {
        const __m512i c = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(codes));
        const __m512i sign = _mm512_set1_epi8(char(0x80));
        const __m512i h = _mm512_permutex2var_epi8(high[0], c, high[1]);
        const __m512i l = _mm512_permutex2var_epi8(low[0], c, low[1]);
        const __m512i signed_h = _mm512_ternarylogic_epi64(h, c, sign, 0xf8);  // h | (c & sign)
        first = _mm512_unpacklo_epi8(l, signed_h);
        second = _mm512_unpackhi_epi8(l, signed_h);
    }

    // x * 2^E for |E| <= 100: nothing of e4m3 leaves the normal range of bf16 there; zeros stay.
    static __m512i scaled(__m512i x, int exponent) {
        const __mmask32 live = _mm512_test_epi16_mask(x, _mm512_set1_epi16(0x7fff));
        return _mm512_mask_add_epi16(x, live, x, _mm512_set1_epi16(short(exponent * 128)));
    }
};

inline bool nan_code(__m512i codes) {
    const __m512i m = _mm512_and_si512(codes, _mm512_set1_epi8(0x7f));
    return _mm512_cmpeq_epi8_mask(m, _mm512_set1_epi8(0x7f)) != 0;
}
#endif

// A row as bf16.
inline void row_to_bf16(int layout, Row row, u16* out) {
    if (layout == BF16_ROW) {
        std::memcpy(out, row.front, 2 * DIM);
        return;
    }
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
    static const Decoder decoder;
    if (layout == FP8_DS_MLA || layout == FP8_ROW) {
        const int blocks = layout == FP8_ROW ? DIM / BLOCK : NOPE / BLOCK;
        bool usual = true;
        for (int b = 0; b < blocks; b++) {
            const int exponent = layout == FP8_ROW ? 0 : byte_exponent(row.tail[b]);
            usual &= exponent >= -100 && exponent <= 100;
            usual &= !nan_code(_mm512_loadu_si512(row.front + b * BLOCK));
            __m512i first, second;
            decoder.plain(row.front + b * BLOCK, first, second);
            _mm512_storeu_si512(out + b * BLOCK, Decoder::scaled(first, exponent));
            _mm512_storeu_si512(out + b * BLOCK + 32, Decoder::scaled(second, exponent));
        }
        if (layout == FP8_DS_MLA) std::memcpy(out + NOPE, row.front + NOPE, 2 * (DIM - NOPE));
        if (usual) return;
    }
#endif
    alignas(64) float wide[DIM];
    row_to_f32(layout, row, wide);
    for (int i = 0; i < DIM; i++) out[i] = to_bf16(wide[i]);
}

}  // namespace dsv4
