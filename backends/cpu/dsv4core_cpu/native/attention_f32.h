// Matrix products of attention in f32, for f32 rows or queries and for every machine without AVX512-BF16. The
// weights of bf16 queries are rounded to bf16 as everywhere.
#pragma once
#include "attention_engine.h"

namespace dsv4 {

struct F32 {
    static constexpr int NV = LANES == 16 ? 4 : 2;
    static constexpr i64 KEYS = 24, HEADS = NV * LANES, ROWS = 6, PANEL = NV * LANES, PANELS = DIM / PANEL;

    struct Own {
        float* row;
        explicit Own(void* memory) : row(static_cast<float*>(memory)) {}
        static size_t bytes() { return DIM * sizeof(float); }
    };

    struct Work {
        float *query, *values;  // [head tiles][512][HEADS], [panels][keys][PANEL]
        i64 keys;

        void cut(Cutter& c, i64 padded) { query = c.take<float>((padded + HEADS) * DIM); }
        void hold(Cutter& c, i64 capacity) {
            keys = capacity | 1;
            values = c.take<float>(PANELS * keys * PANEL);
        }

        static i64 rows(i64) { return ROWS; }

        void pack_query(const Call& call, i64 t, i64 h, i64) {
            float* panel = query + h * HEADS * DIM;
            for (int first = 0; first < DIM; first += 16)  // a cache line of every head at a time
                for (i64 i = 0; i < HEADS; i++) {
                    float x[16] = {};
                    if (h * HEADS + i < call.heads) call.queries().load(t, h * HEADS + i, first, 16, x);
                    for (int d = 0; d < 16; d++) panel[(first + d) * HEADS + i] = x[d];
                }
        }

        void load(Own& own, const Key* from, i64 count, i64 place, bool) {
            for (i64 j = 0; j < count; j++) {
                if (from[j].layout == F32_ROW) std::memcpy(own.row, from[j].front, DIM * sizeof(float));
                else row_to_f32(from[j].layout, from[j], own.row);
                for (int p = 0; p < PANELS; p++)
                    std::memcpy(values + (p * keys + place + j) * PANEL, own.row + p * PANEL, PANEL * sizeof(float));
            }
        }

        template <int R> void dots_rows(i64 place, i64 h, i64 padded, float* s, float scale) {
            const float* panel = query + h * HEADS * DIM;
            Vec sum[R][NV];
            for (int r = 0; r < R; r++)
                for (int v = 0; v < NV; v++) sum[r][v] = zero();
            for (int p = 0; p < PANELS; p++)
                for (int d = 0; d < PANEL; d++) {
                    const float* row = values + (p * keys + place) * PANEL + d;
                    Vec column[NV];
                    for (int v = 0; v < NV; v++) column[v] = dsv4::load(panel + (p * PANEL + d) * HEADS + v * LANES);
                    for (int r = 0; r < R; r++)
                        for (int v = 0; v < NV; v++) sum[r][v] = fma(all(row[r * PANEL]), column[v], sum[r][v]);
                }
            for (int r = 0; r < R; r++)
                for (int v = 0; v < NV && h * HEADS + v * LANES < padded; v++)
                    store(s + r * padded + h * HEADS + v * LANES, mul(sum[r][v], all(scale)));
        }

        void dots(Own&, i64, i64 place, i64 count, i64 h, i64 padded, float* s, float scale) {
            switch (count) {
                case 1: return dots_rows<1>(place, h, padded, s, scale);
                case 2: return dots_rows<2>(place, h, padded, s, scale);
                case 3: return dots_rows<3>(place, h, padded, s, scale);
                case 4: return dots_rows<4>(place, h, padded, s, scale);
                case 5: return dots_rows<5>(place, h, padded, s, scale);
                default: return dots_rows<6>(place, h, padded, s, scale);
            }
        }

        void soften(const Call& call, i64 t, i64 n, i64 head, float* scores, i64 padded, float* share) {
            float* s = scores + head;
            dsv4::soften(s, n, padded, call, t, head, share, [&](i64 j, Vec a, Vec b) {
                put(s + j * padded, a, call.f32);
                if (j + 1 < n) put(s + (j + 1) * padded, b, call.f32);
            });
        }
        static void put(float* to, Vec x, bool f32) {
            if (f32) return store(to, x);
            float lane[LANES];
            store(lane, x);
            for (int i = 0; i < LANES; i++) to[i] = from_bf16(to_bf16(lane[i]));
        }

        template <int R>
        void weigh_rows(const Call& call, i64 t, i64 panel, i64 head, i64 first, i64 count, const float* scores,
                        i64 padded, const float* share, float* sums, bool fresh, bool final) {
            const float* v = values + panel * keys * PANEL;
            const float* p = scores + first * padded + head;
            float* partial = sums + head * DIM + panel * PANEL;
            Vec sum[R][NV];
            for (int r = 0; r < R; r++)
                for (int i = 0; i < NV; i++) sum[r][i] = fresh ? zero() : dsv4::load(partial + r * DIM + i * LANES);
            for (i64 j = 0; j < count; j++) {
                Vec column[NV];
                for (int i = 0; i < NV; i++) column[i] = dsv4::load(v + j * PANEL + i * LANES);
                for (int r = 0; r < R; r++)
                    for (int i = 0; i < NV; i++) sum[r][i] = fma(all(p[j * padded + r]), column[i], sum[r][i]);
            }
            for (int r = 0; r < R; r++)
                for (int i = 0; i < NV; i++) {
                    if (!final) {
                        store(partial + r * DIM + i * LANES, sum[r][i]);
                        continue;
                    }
                    float lane[LANES];
                    store(lane, mul(sum[r][i], all(share[head + r])));
                    call.results().store(t, head + r, int(panel * PANEL + i * LANES), LANES, lane);
                }
        }

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
