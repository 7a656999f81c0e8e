// How 128 channels of rows meet columns of as many: one by one in f32, or in pairs of bf16 where the processor has
// such a product. Sums are f32 either way.
#pragma once
#include "simd.h"

namespace dsv4 {

constexpr int DOT = 128;

struct FloatMath {
    using Word = float;
    static constexpr int WORDS = DOT, NV = LANES == 16 ? 4 : 2, ROWS = 6;
    using Column = Vec;
    static Column column(const Word* p) { return load(p); }
    static Vec step(Vec sum, Word word, Column c) { return fma(all(word), c, sum); }
    static void words(const u16* row, Word* out) {
        for (int i = 0; i < DOT; i++) out[i] = from_bf16(row[i]);
    }
    static void words(const u8* f32, Word* out) { std::memcpy(out, f32, DOT * sizeof(float)); }
};

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
struct PairMath {
    using Word = u32;
    static constexpr int WORDS = DOT / 2, NV = 4, ROWS = 6;
    using Column = __m512i;
    static Column column(const Word* p) { return _mm512_load_si512(p); }
    static Vec step(Vec sum, Word word, Column c) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(int(word)), (__m512bh)c);
    }
    static void words(const u16* row, Word* out) { std::memcpy(out, row, 2 * DOT); }
    static void words(const u8*, Word*) {}  // rows of f32 never come here
};
#else
using PairMath = FloatMath;
#endif

}  // namespace dsv4
