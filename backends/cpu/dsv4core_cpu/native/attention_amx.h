// Matrix products of attention with AMX. Queries and rows lie in memory as for AVX512-BF16; weights are turned so
// that a tile's row is a head.
#pragma once
#include "amx.h"
#include "attention_bf16.h"

#if DSV4_AMX
namespace dsv4 {

struct Amx : Bf16 {
    static constexpr i64 KEYS = 32, ROWS = 32, PAIRS = KEYS / 2;

    struct Own : Bf16::Own {
        Tiles tiles;
        using Bf16::Own::Own;
        static size_t bytes() { return KEYS * DIM * 2; }
    };

    struct Work : Bf16::Work {
        void hold(Cutter& c, i64 capacity) { Bf16::Work::hold(c, capacity + KEYS); }
        static i64 rows(i64) { return KEYS; }

        // A tile of keys that is not full ends in zeros.
        void load(Own& own, const Key* keys, i64 count, i64 place, bool keep) {
            Bf16::Work::load(own, keys, count, place, keep);
            for (i64 p = 0; keep && count < KEYS && p < PANELS; p++)
                for (i64 j = (place + count + 1) / 2; j < place / 2 + PAIRS; j++)
                    std::memset(values + (p * pairs + j) * PANEL, 0, PANEL * sizeof(u32));
        }

        // Scores of rows that do not exist are written too: behind the last key there is room.
        void dots(Own& own, i64 row, i64, i64 count, i64 h, i64 padded, float* s, float scale) {
            const int nv = vectors(h, padded);
            for (int v = 0; v < nv; v += 2) {
                const TileProduct product{own.rows + row * (DIM / 2), query + h * HEADS * DIM / 2 + v * 16,
                                          DIM * 2, 16 * DIM * 2, 64, nv * 64, 16 * nv * 64, DIM / 32, count > 16, v + 1 < nv};
                float* to = s + h * HEADS + v * 16;
                product.run([] { TileProduct::clear(); }, [&] { product.store(to, padded); });
                for (i64 r = 0; r < count; r++)
                    for (i64 i = 0; i < std::min(2, nv - v); i++)
                        dsv4::store(to + r * padded + i * 16, mul(dsv4::load(to + r * padded + i * 16), all(scale)));
            }
        }

        // Blocks of 16 pairs of keys and 16 heads are turned in place, with weights of 0 behind the last key.
        void soften(const Call& call, i64 t, i64 n, i64 head, float* scores, i64 padded, float* share) {
            Bf16::Work::soften(call, t, n, head, scores, padded, share);
            for (i64 block = 0; block < (n + 1) / 2; block += PAIRS) {
                __m512i r[16];
                float* at = scores + block * padded + head;
                for (int i = 0; i < 16; i++)
                    r[i] = block + i < (n + 1) / 2 ? _mm512_loadu_si512(at + i * padded) : _mm512_setzero_si512();
                transpose16(r);
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(at + i * padded, r[i]);
            }
        }

        void weigh(const Call& call, i64 t, i64 panel, i64 head, i64 heads, i64 first, i64 count, const float* scores,
                   i64 padded, const float* share, float* sums, bool fresh, bool final) {
            alignas(64) float made[ROWS * 32];
            for (int half = 0; half < 2; half++) {
                const TileProduct product{scores + first / 2 * padded + head, values + panel * pairs * PANEL + half * 32,
                                          padded * 4, 64, PAIRS * padded * 4, PANEL * 4, PAIRS * PANEL * 4,
                                          (count + KEYS - 1) / KEYS, heads > 16, true};
                float* partial = sums + head * DIM + panel * PANEL + half * 32;
                product.run([&] { fresh ? TileProduct::clear() : product.load(partial, DIM); },
                            [&] { final ? product.store(made, 32) : product.store(partial, DIM); });
                for (i64 r = 0; final && r < heads; r++)
                    finish(call, t, head + r, panel * PANEL + half * 32, dsv4::load(made + r * 32),
                           dsv4::load(made + r * 32 + 16), share);
            }
        }
    };
};

}  // namespace dsv4
#endif
