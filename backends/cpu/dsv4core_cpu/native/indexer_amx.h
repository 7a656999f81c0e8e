// Scores of entries with AMX. Queries and keys lie in memory as for AVX512-BF16.
#pragma once
#include "amx.h"
#include "indexer.h"

#if DSV4_AMX
namespace dsv4 {

struct AmxProducts : Products<PairMath> {
    static constexpr i64 SIDE = 32;  // of a product: entries and heads

    struct Block : Products<PairMath>::Block {
        Tiles tiles;

        void score(const Query& q, i64 padded, i64 count, float* scores) {
            constexpr i64 WIDTH = PairMath::NV * LANES;
            alignas(64) float made[SIDE * SIDE];
            for (i64 h = 0; h < padded; h += SIDE) {
                const i64 vectors = std::min(WIDTH, padded - h / WIDTH * WIDTH) / LANES;  // of the panel
                const u32* panel = q.panel + h / WIDTH * WIDTH * PairMath::WORDS + h % WIDTH;
                const bool both = h + LANES < padded;
                for (i64 e = 0; e < count; e += SIDE) {
                    const TileProduct product{keys + e * PairMath::WORDS, panel, PairMath::WORDS * 4,
                                              16 * PairMath::WORDS * 4, 64, vectors * 64, 16 * vectors * 64,
                                              INDEX_DIM / 32, true, both};
                    product.run([] { TileProduct::clear(); }, [&] { product.store(made, SIDE); });
                    for (i64 r = 0; r < SIDE; r++) {
                        const Vec sum[2] = {dsv4::load(made + r * SIDE), dsv4::load(made + r * SIDE + LANES)};
                        if (both) add<2>(e + r, sum, q.weights + h, h == 0);
                        else add<1>(e + r, sum, q.weights + h, h == 0);
                    }
                }
            }
            finish(count, scores);
        }
    };
};

}  // namespace dsv4
#endif
