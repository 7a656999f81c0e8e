// Scores of mxfp4 entries from whole numbers: twice an e2m1 value is at most 12, so a block of 32 products is one
// exact sum of bytes, which is then scaled. Channels stay in the order in which nibbles fall.
#pragma once
#include "indexer.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
namespace dsv4 {

// Doubled values of 128 codes, block after block, plus `offset`.
inline void doubled(const u8* codes, int offset, __m512i (&out)[2]) {
    const __m128i values = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m512i table = _mm512_add_epi8(_mm512_broadcast_i32x4(values), _mm512_set1_epi8(char(offset)));
    const __m512i p = _mm512_loadu_si512(codes), nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(p, nibble));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(p, 4), nibble));
    out[0] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    out[1] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
}

struct WholeProducts {
    using Word = u32;
    static constexpr int WORDS = INDEX_DIM / 4, STEPS = WORDS / MX_BLOCKS, NV = 2, ROWS = 6;
    static constexpr i64 WIDTH = NV * LANES;
    static constexpr int OFFSET = 12;  // makes a query's bytes unsigned, which the instruction wants

    struct Query {
        u32* panel;              // [head tiles][WORDS][<= WIDTH]
        float *scale, *weights;  // [head tiles][MX_BLOCKS][<= WIDTH], [padded]
        static size_t words(i64 padded) { return size_t(padded * (WORDS + MX_BLOCKS + 1)); }

        Query(u32* memory, i64 padded)
            : panel(memory), scale(reinterpret_cast<float*>(memory + padded * WORDS)), weights(scale + padded * MX_BLOCKS) {}

        bool pack(const IndexCall& call, i64 t, i64 padded) {
            bool good = true;
            for (i64 h = 0; h < padded; h++) {
                const i64 tile = h / WIDTH, wide = std::min(WIDTH, padded - tile * WIDTH), at = h % WIDTH;
                const u8 none[INDEX_DIM / 2] = {}, *codes = none, *scales = none;
                if (h < call.heads) codes = call.q + t * call.q0 + h * call.q1, scales = call.scales + t * call.c0 + h * call.c1;
                float factor;
                int down[MX_BLOCKS];
                good &= mxfp4_scales(codes, scales, down, factor);
                alignas(64) u32 words[WORDS];
                __m512i bytes[2];
                doubled(codes, OFFSET, bytes);
                _mm512_store_si512(words, bytes[0]);
                _mm512_store_si512(words + 16, bytes[1]);
                for (int k = 0; k < WORDS; k++) panel[tile * WIDTH * WORDS + k * wide + at] = words[k];
                for (int b = 0; b < MX_BLOCKS; b++)
                    scale[tile * WIDTH * MX_BLOCKS + b * wide + at] = power_of_two(down[b]);
                weights[h] = h < call.heads ? call.weights(t, h) * factor : 0.0f;
            }
            return good;
        }
    };

    struct Block : Sums {
        u32* keys;     // [ENTRIES][WORDS]
        i32* start;    // [ENTRIES][16]: what the offset adds to a block's sum, four times, negative
        float* scale;  // [ENTRIES][MX_BLOCKS]

        void cut(Cutter& c) {
            keys = c.take<u32>(ENTRIES * WORDS);
            start = c.take<i32>(ENTRIES * 16);
            scale = c.take<float>(ENTRIES * MX_BLOCKS);
            Sums::cut(c);
        }

        bool load(const IndexCall& call, i64 r, i64 first, i64 count) {
            bool good = true;
            const __m512i offset = _mm512_set1_epi8(OFFSET);
            for (i64 i = 0; i < count; i++) {
                const i64 slot = call.slot(r, first + i);
                const u8* codes = call.pages.front(slot);
                int down[MX_BLOCKS];
                good &= mxfp4_scales(codes, call.pages.tail(slot), down, factor[i]);
                factor[i] *= 0.25f;  // both sides are doubled
                for (int b = 0; b < MX_BLOCKS; b++) scale[i * MX_BLOCKS + b] = power_of_two(down[b]);
                __m512i bytes[2];
                doubled(codes, 0, bytes);
                for (int half = 0; half < 2; half++) {  // two blocks each
                    _mm512_store_si512(keys + i * WORDS + 16 * half, bytes[half]);
                    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), offset, bytes[half]);
                    sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_BADC));
                    sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB));
                    sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4(sum, sum, 0xb1));
                    sum = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
                    _mm256_store_si256(reinterpret_cast<__m256i*>(start + i * 16 + 8 * half),
                                       _mm512_castsi512_si256(_mm512_shuffle_i32x4(sum, sum, 0x08)));
                }
            }
            for (i64 i = count; i < ENTRIES; i++) {  // what is left over is scored too, and dropped
                std::memset(keys + i * WORDS, 0, WORDS * sizeof(u32));
                std::memset(start + i * 16, 0, 16 * sizeof(i32));
                std::memset(scale + i * MX_BLOCKS, 0, MX_BLOCKS * sizeof(float));
                factor[i] = 0;
            }
            return good;
        }

        // Not inlined: among other code the compiler runs out of registers.
        template <int V> __attribute__((noinline))
        void dots(const u32* panel, const float* scales, const float* weights, i64 first, bool fresh) {
            const u32* rows = keys + first * WORDS;
            Vec sum[ROWS][V];
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < V; v++) sum[r][v] = zero();
            for (int b = 0; b < MX_BLOCKS; b++) {
                __m512i whole[ROWS][V];
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < V; v++) whole[r][v] = _mm512_set1_epi32(start[(first + r) * 16 + 4 * b]);
                for (int k = b * STEPS; k < (b + 1) * STEPS; k++) {
                    __m512i column[V];
                    for (int v = 0; v < V; v++) column[v] = _mm512_loadu_si512(panel + (k * V + v) * 16);
                    for (int r = 0; r < ROWS; r++) {
                        const __m512i word = _mm512_set1_epi32(int(rows[r * WORDS + k]));
                        for (int v = 0; v < V; v++) whole[r][v] = _mm512_dpbusd_epi32(whole[r][v], column[v], word);
                    }
                }
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < V; v++) {
                        const Vec by = mul(all(scale[(first + r) * MX_BLOCKS + b]), dsv4::load(scales + (b * V + v) * 16));
                        sum[r][v] = fma(_mm512_cvtepi32_ps(whole[r][v]), by, sum[r][v]);
                    }
            }
            for (int r = 0; r < ROWS; r++) add<V>(first + r, sum[r], weights, fresh);
        }

        void score(const Query& q, i64 padded, i64 count, float* scores) {
            for (i64 h = 0; h < padded; h += WIDTH)
                for (i64 e = 0; e < count; e += ROWS) {
                    const u32* panel = q.panel + h * WORDS;
                    const float *scales = q.scale + h * MX_BLOCKS, *weights = q.weights + h;
                    if (padded - h == LANES) dots<1>(panel, scales, weights, e, h == 0);
                    else dots<2>(panel, scales, weights, e, h == 0);
                }
            finish(count, scores);
        }
    };
};

}  // namespace dsv4
#endif
