// Scores of a block of entries for one token after another: sum_h w_h relu(q_h . k), then the entry's factor.
#pragma once
#include "dots.h"
#include "index_rows.h"

namespace dsv4 {

static_assert(INDEX_DIM == DOT);

constexpr i64 ENTRIES = 96;      // a block: its keys stay in the first cache while all tokens pass
constexpr i64 TILE_TOKENS = 8;   // tokens of one request that share every block

struct IndexCall {
    const u8* q;
    i64 q0, q1;
    const u8* scales;  // mxfp4 only
    i64 c0, c1;
    View<const float> weights;
    i64 tokens, heads;
    Pages pages;
    const i32 *lens, *request;
    i64 lens_stride, request_stride, requests, width;
    View<const i32> table;

    i64 length(i64 t) const { return lens[t * lens_stride]; }
    i64 owner(i64 t) const { return request[t * request_stride]; }
    i64 padded() const { return (heads + LANES - 1) / LANES * LANES; }

    i64 slot(i64 r, i64 e) const { return i64(table(r, e / pages.rows)) * pages.rows + e % pages.rows; }

    // Whether entries [0, n) of a request all have a page of this cache.
    bool mapped(i64 r, i64 n) const {
        if (n > 0 && (r < 0 || r >= requests)) return false;
        const i64 columns = (n + pages.rows - 1) / pages.rows;
        if (columns > width) return false;
        for (i64 c = 0; c < columns; c++)
            if (table(r, c) < 0 || table(r, c) >= pages.count) return false;
        return true;
    }
};

// What blocks of both kinds end with: the factor of every entry, and sums over heads in LANES parts.
struct Sums {
    float *factor, *parts;  // [ENTRIES], [ENTRIES][LANES]

    void cut(Cutter& c) {
        factor = c.take<float>(ENTRIES);
        parts = c.take<float>(ENTRIES * LANES);
    }
    template <int NV> void add(i64 entry, const Vec* sum, const float* weights, bool fresh) {
        float* part = parts + entry * LANES;
        Vec total = fresh ? zero() : dsv4::load(part);
        for (int v = 0; v < NV; v++) total = fma(max(sum[v], zero()), dsv4::load(weights + v * LANES), total);
        store(part, total);
    }
    void finish(i64 count, float* scores) const {
        for (i64 e = 0; e < count; e += LANES) {
            sum_lanes(parts + e * LANES, scores + e);
            store(scores + e, mul(dsv4::load(scores + e), dsv4::load(factor + e)));
        }
    }
};

// Products of numbers: every layout, every level.
template <class Math> struct Products {
    using Word = typename Math::Word;

    // A token's queries as columns, and its weights with the queries' factors.
    struct Query {
        Word* panel;     // [head tiles][WORDS][<= NV * LANES]
        float* weights;  // [padded]
        static size_t words(i64 padded) { return size_t(padded * (Math::WORDS + 1)); }

        Query(Word* memory, i64 padded)
            : panel(memory), weights(reinterpret_cast<float*>(memory + padded * Math::WORDS)) {}

        bool pack(const IndexCall& call, i64 t, i64 padded) {
            constexpr i64 WIDTH = Math::NV * LANES;
            bool good = true;
            u16 row[INDEX_DIM];
            Word words[Math::WORDS];
            for (i64 h = 0; h < padded; h++) {
                const i64 tile = h / WIDTH, wide = std::min(WIDTH, padded - tile * WIDTH);
                float factor = 1.0f;
                const u8* q = call.q + t * call.q0 + h * call.q1;
                if (h >= call.heads)
                    std::memset(row, 0, sizeof row);
                else if (call.scales)
                    good &= mxfp4_row(q, call.scales + t * call.c0 + h * call.c1, row, factor);
                else if (call.pages.layout != INDEX_F32)
                    e4m3_row(q, row);
                if (h < call.heads && call.pages.layout == INDEX_F32) Math::words(q, words);
                else Math::words(row, words);
                Word* to = panel + tile * WIDTH * Math::WORDS + h % WIDTH;
                for (int k = 0; k < Math::WORDS; k++) to[k * wide] = words[k];
                weights[h] = h < call.heads ? call.weights(t, h) * factor : 0.0f;
            }
            return good;
        }
    };

    struct Block : Sums {
        Word* keys;  // [ENTRIES][WORDS]

        void cut(Cutter& c) {
            keys = c.take<Word>(ENTRIES * Math::WORDS);
            Sums::cut(c);
        }

        bool load(const IndexCall& call, i64 r, i64 first, i64 count) {
            bool good = true;
            u16 row[INDEX_DIM];
            for (i64 i = 0; i < count; i++) {
                const i64 slot = call.slot(r, first + i);
                const u8* front = call.pages.front(slot);
                factor[i] = 1.0f;
                if (call.pages.layout == INDEX_F32) {
                    Math::words(front, keys + i * Math::WORDS);
                    continue;
                }
                good &= index_row(call.pages.layout, front, call.pages.tail(slot), row, factor[i]);
                Math::words(row, keys + i * Math::WORDS);
            }
            for (i64 i = count; i < ENTRIES; i++) {  // what is left over is scored too, and dropped
                std::memset(keys + i * Math::WORDS, 0, Math::WORDS * sizeof(Word));
                factor[i] = 0;
            }
            return good;
        }

        template <int NV> void dots(const Word* panel, const float* weights, i64 first, bool fresh) {
            constexpr int R = Math::ROWS;
            const Word* rows = keys + first * Math::WORDS;
            Vec sum[R][NV];
            for (int r = 0; r < R; r++)
                for (int v = 0; v < NV; v++) sum[r][v] = zero();
            for (int k = 0; k < Math::WORDS; k++) {
                typename Math::Column column[NV];
                for (int v = 0; v < NV; v++) column[v] = Math::column(panel + (k * NV + v) * LANES);
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < NV; v++)
                        sum[r][v] = Math::step(sum[r][v], rows[r * Math::WORDS + k], column[v]);
            }
            for (int r = 0; r < R; r++) add<NV>(first + r, sum[r], weights, fresh);
        }

        // Scores of entries [0, count) for one token; `scores` has room for ENTRIES.
        void score(const Query& q, i64 padded, i64 count, float* scores) {
            constexpr i64 WIDTH = Math::NV * LANES;
            for (i64 h = 0; h < padded; h += WIDTH) {
                const Word* panel = q.panel + h * Math::WORDS;
                const float* w = q.weights + h;
                for (i64 e = 0; e < count; e += Math::ROWS) switch (std::min(WIDTH, padded - h) / LANES) {
                    case 1: dots<1>(panel, w, e, h == 0); break;
                    case 2: dots<2>(panel, w, e, h == 0); break;
                    case 3: dots<(Math::NV > 2 ? 3 : 2)>(panel, w, e, h == 0); break;
                    default: dots<Math::NV>(panel, w, e, h == 0);
                }
            }
            finish(count, scores);
        }
    };
};

}  // namespace dsv4
