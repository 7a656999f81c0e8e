// Matrix products of attention with AVX512-BF16: pairs of bf16 per 32-bit word, sums in f32.
#pragma once
#include "attention_engine.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
namespace dsv4 {

inline __m512 dot2(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

inline void transpose16(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
        t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
        t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
    }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

// R rows times a panel of NV * 16 columns: `rows` hold words 256 apart that are broadcast one by one.
template <int R, int NV>
void dots_bf16(const u32* rows, const u32* panel, float* s, i64 stride, float scale) {
    __m512 sum[R][NV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = zero();
    for (int k = 0; k < DIM / 2; k++) {
        __m512i column[NV];
        for (int v = 0; v < NV; v++) column[v] = _mm512_load_si512(panel + (k * NV + v) * 16);
        for (int r = 0; r < R; r++) {
            const __m512i word = _mm512_set1_epi32(int(rows[r * (DIM / 2) + k]));
            for (int v = 0; v < NV; v++) sum[r][v] = dot2(sum[r][v], word, column[v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) store(s + r * stride + v * 16, mul(sum[r][v], all(scale)));
}

template <int R> void dots_rows(int nv, const u32* rows, const u32* panel, float* s, i64 stride, float scale) {
    switch (nv) {
        case 1: return dots_bf16<R, 1>(rows, panel, s, stride, scale);
        case 2: return dots_bf16<R, 2>(rows, panel, s, stride, scale);
        case 3: return dots_bf16<R, R <= 6 ? 3 : 2>(rows, panel, s, stride, scale);
        default: return dots_bf16<R, R <= 6 ? 4 : 2>(rows, panel, s, stride, scale);
    }
}

// Undoes the interleaving of `Work::load`: word 4L + i of the first vector is channel 8L + i, of the second
// 8L + 4 + i.
struct alignas(64) ChannelOrder { u16 at[32]; };
constexpr ChannelOrder channel_order() {
    ChannelOrder order{};
    for (int d = 0; d < 32; d++) order.at[d] = u16((d / 4 % 2) * 16 + d / 8 * 4 + d % 4);
    return order;
}
inline constexpr ChannelOrder CHANNELS = channel_order();

struct Bf16 {
    static constexpr i64 KEYS = 24, HEADS = 64, ROWS = 6, PANELS = 8, PANEL = 64;

    struct Own {
        u32* rows;  // [KEYS][256]
        explicit Own(void* memory) : rows(static_cast<u32*>(memory)) {}
        static size_t bytes() { return KEYS * DIM * 2; }
    };

    struct Work {
        u32 *query, *values;  // [head tiles][256][<= 64], [panels][pairs][64]
        i64 pairs;

        void cut(Cutter& c, i64 padded) { query = c.take<u32>(padded * DIM / 2); }
        void hold(Cutter& c, i64 capacity) {
            pairs = (capacity / 2 + 1) | 1;  // odd, so that panels do not fall on the same cache sets
            values = c.take<u32>(PANELS * pairs * PANEL);
        }

        // Keys per call of `dots`: twice as many where a narrow panel leaves registers free.
        static i64 rows(i64 padded) { return padded <= 32 ? 2 * ROWS : ROWS; }

        static int vectors(i64 h, i64 padded) { return int(std::min<i64>(HEADS, padded - h * HEADS) / 16); }

        void pack_query(const Call& call, i64 t, i64 h, i64 padded) {
            const int nv = vectors(h, padded);
            u32* panel = query + h * HEADS * DIM / 2;
            for (int v = 0; v < nv; v++)
                for (int k = 0; k < DIM / 2; k += 16) {
                    __m512i r[16];
                    for (int i = 0; i < 16; i++) {
                        const i64 head = h * HEADS + v * 16 + i;
                        r[i] = head < call.heads ? _mm512_loadu_si512(&call.q(t, head) + 2 * k) : _mm512_setzero_si512();
                    }
                    transpose16(r);
                    for (int i = 0; i < 16; i++) _mm512_store_si512(panel + ((k + i) * nv + v) * 16, r[i]);
                }
        }

        // Decoded rows as they are for the scores; pairs of rows interleaved for the sum.
        void load(Own& own, const Key* keys, i64 count, i64 place, bool keep) {
            u16* rows = reinterpret_cast<u16*>(own.rows);
            for (i64 j = 0; j < count; j++) row_to_bf16(keys[j].layout, keys[j], rows + j * DIM);
            if (!keep) return;
            if (count % 2) std::memset(rows + count * DIM, 0, 2 * DIM);
            for (i64 j = 0; j < count; j += 2)
                for (int b = 0; b < DIM / 32; b++) {
                    const __m512i x = _mm512_load_si512(rows + j * DIM + b * 32);
                    const __m512i y = _mm512_load_si512(rows + (j + 1) * DIM + b * 32);
                    u32* to = values + ((b / 2) * pairs + (place + j) / 2) * PANEL + (b % 2) * 32;
                    _mm512_store_si512(to, _mm512_unpacklo_epi16(x, y));
                    _mm512_store_si512(to + 16, _mm512_unpackhi_epi16(x, y));
                }
        }

        void dots(Own& own, i64 row, i64, i64 count, i64 h, i64 padded, float* s, float scale) {
            const u32 *rows = own.rows + row * (DIM / 2), *panel = query + h * HEADS * DIM / 2;
            const int nv = vectors(h, padded);
            s += h * HEADS;
            if (nv <= 2 && count == 12) return dots_rows<12>(nv, rows, panel, s, padded, scale);
            switch (count) {
                case 1: return dots_rows<1>(nv, rows, panel, s, padded, scale);
                case 2: return dots_rows<2>(nv, rows, panel, s, padded, scale);
                case 3: return dots_rows<3>(nv, rows, panel, s, padded, scale);
                case 4: return dots_rows<4>(nv, rows, panel, s, padded, scale);
                case 5: return dots_rows<5>(nv, rows, panel, s, padded, scale);
                default: return dots_rows<6>(nv, rows, panel, s, padded, scale);
            }
        }

        // Two keys' weights become one word; row j / 2 of the scores has been read when it is overwritten.
        void soften(const Call& call, i64 t, i64 n, i64 head, float* scores, i64 padded, float* share) {
            alignas(64) u16 order[32];
            for (int i = 0; i < 16; i++) order[2 * i] = u16(i), order[2 * i + 1] = u16(16 + i);
            const __m512i mix = _mm512_load_si512(order);
            float* s = scores + head;
            dsv4::soften(s, n, padded, call, t, head, share, [&](i64 j, Vec a, Vec b) {
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
                _mm512_storeu_si512(s + j / 2 * padded, _mm512_permutexvar_epi16(mix, both));
            });
        }

        template <int R>
        void weigh_rows(const Call& call, i64 t, i64 panel, i64 head, i64 first, i64 count, const float* scores,
                        i64 padded, const float* share, float* sums, bool fresh, bool final) {
            const u32* v = values + panel * pairs * PANEL;
            const u32* p = reinterpret_cast<const u32*>(scores) + first / 2 * padded + head;
            float* partial = sums + head * DIM + panel * PANEL;
            __m512 sum[R][4];
            for (int r = 0; r < R; r++)
                for (int i = 0; i < 4; i++) sum[r][i] = fresh ? zero() : load_f32(partial + r * DIM + i * 16);
            for (i64 j = 0; j < (count + 1) / 2; j++) {
                __m512i column[4];
                for (int i = 0; i < 4; i++) column[i] = _mm512_load_si512(v + j * PANEL + i * 16);
                for (int r = 0; r < R; r++) {
                    const __m512i word = _mm512_set1_epi32(int(p[j * padded + r]));
                    for (int i = 0; i < 4; i++) sum[r][i] = dot2(sum[r][i], word, column[i]);
                }
            }
            for (int r = 0; r < R; r++)
                for (int i = 0; i < 4; i += 2) {
                    if (final) {
                        finish(call, t, head + r, panel * PANEL + i * 16, sum[r][i], sum[r][i + 1], share);
                        continue;
                    }
                    store(partial + r * DIM + i * 16, sum[r][i]);
                    store(partial + r * DIM + i * 16 + 16, sum[r][i + 1]);
                }
        }

        // 32 channels of a result.
        static void finish(const Call& call, i64 t, i64 head, i64 channel, Vec first, Vec second, const float* share) {
            const __m512i order = _mm512_load_si512(CHANNELS.at);
            const Vec f = all(share[head]);
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(mul(second, f), mul(first, f));
            _mm512_storeu_si512(&call.out(t, head) + channel, _mm512_permutexvar_epi16(order, both));
        }
        static Vec load_f32(const float* p) { return dsv4::load(p); }

        template <class... A> void weigh(const Call& call, i64 t, i64 panel, i64 head, i64 heads, A... rest) {
            switch (heads) {
                case 1: return weigh_rows<1>(call, t, panel, head, rest...);
                case 2: return weigh_rows<2>(call, t, panel, head, rest...);
                case 3: return weigh_rows<3>(call, t, panel, head, rest...);
                case 4: return weigh_rows<4>(call, t, panel, head, rest...);
                case 5: return weigh_rows<5>(call, t, panel, head, rest...);
                default: return weigh_rows<6>(call, t, panel, head, rest...);
            }
        }
    };
};

}  // namespace dsv4
#endif
