// `indexer_logits`, `indexer_topk` and `sparse_indexer`. A tile is up to eight tokens of one request; every
// block of entries is decoded once for all of them. Logits and lists take their scores from the same code, so
// the fused op lists exactly what the two others do.
#include <atomic>
#include <vector>

#include "indexer_amx.h"
#include "indexer_vnni.h"
#include "top.h"

using namespace dsv4;

namespace {

struct Tile { i64 request, longest, count, token[TILE_TOKENS]; };

// Tokens with more than `least` entries, in groups of one request; false if an entry has no page.
bool make_tiles(const IndexCall& call, i64 least, i64 most, std::vector<Tile>& tiles) {
    std::vector<std::pair<i64, i64>> order;
    for (i64 t = 0; t < call.tokens; t++)
        if (call.length(t) > least) order.emplace_back(call.owner(t), t);
    std::stable_sort(order.begin(), order.end(), [](auto& a, auto& b) { return a.first < b.first; });
    for (auto& [r, t] : order) {
        const i64 n = std::min(call.length(t), most);
        if (tiles.empty() || tiles.back().request != r || tiles.back().count == TILE_TOKENS)
            tiles.push_back({r, 0, 0, {}});
        Tile& tile = tiles.back();
        tile.token[tile.count++] = t;
        tile.longest = std::max(tile.longest, n);
    }
    i64 request = -1, longest = 0;
    for (const Tile& tile : tiles) {
        if (tile.request == request && tile.longest <= longest) continue;
        if (!call.mapped(tile.request, tile.longest)) return false;
        request = tile.request, longest = tile.longest;
    }
    return true;
}

// What a thread needs for one tile; `k` is 0 for logits.
template <class Math> struct Room {
    using Query = typename Math::Query;
    typename Math::Word* queries;
    u64* best;
    float* scores;
    typename Math::Block block;
    i64 padded, k;

    Room(const IndexCall& call, i64 top, Cutter cut) : padded(call.padded()), k(top) { lay_out(cut); }
    void lay_out(Cutter& cut) {
        queries = cut.take<typename Math::Word>(TILE_TOKENS * Query::words(padded));
        best = cut.take<u64>(k ? TILE_TOKENS * Top::words(k) : 0);
        scores = cut.take<float>(ENTRIES + LANES);
        block.cut(cut);
    }
    static size_t bytes(const IndexCall& call, i64 top) {
        Room room(call, top, Cutter());
        Cutter cut;
        room.lay_out(cut);
        return cut.used();
    }
    Query query(i64 i) const { return Query(queries + i * i64(Query::words(padded)), padded); }
    Top top(i64 i) const { return Top(best + i * i64(Top::words(k)), k); }
};

constexpr i64 SPAN = 40 * ENTRIES;  // entries that one thread takes at a time when a team shares a tile

template <class Math, class Give>
bool score_span(const IndexCall& call, const Tile& tile, Room<Math>& room, i64 first, i64 last, Give&& give) {
    bool good = true;
    for (i64 e = first; e < last; e += ENTRIES) {
        good &= room.block.load(call, tile.request, e, std::min(ENTRIES, last - e));
        for (i64 i = 0; i < tile.count; i++) {
            const i64 seen = std::min(std::min(ENTRIES, last - e), call.length(tile.token[i]) - e);
            if (seen <= 0) continue;
            room.block.score(room.query(i), room.padded, seen, room.scores);
            give(i, e, seen, room.scores);
        }
    }
    return good;
}

template <class Math> bool pack(const IndexCall& call, const Tile& tile, Room<Math>& room) {
    bool good = true;
    for (i64 i = 0; i < tile.count; i++) good &= room.query(i).pack(call, tile.token[i], room.padded);
    return good;
}

// Whole tiles while every thread gets one, then the rest tile by tile as a team. `give` takes the scores of
// one token's block, `end` the finished candidates of a tile.
template <class Math, class Give, class End>
int run_with(const IndexCall& call, i64 k, const std::vector<Tile>& tiles, int threads, Give&& give, End&& end) {
    static thread_local Scratch memory;
    const size_t bytes = Room<Math>::bytes(call, k);
    const i64 count = i64(tiles.size()), team = std::max(1, threads), alone = count - count % team;
    std::atomic<bool> good{true};
    std::vector<Top> shared;
#pragma omp parallel num_threads(int(team)) if (team > 1)
    {
        Room<Math> room(call, k, Cutter(memory.get(bytes)));
#pragma omp for schedule(dynamic, 1)
        for (i64 n = 0; n < alone; n++) {
            const Tile& tile = tiles[n];
            std::vector<Top> tops;
            if (k) for (i64 i = 0; i < tile.count; i++) tops.push_back(room.top(i));
            if (!pack(call, tile, room)) good = false;
            if (!score_span(call, tile, room, 0, tile.longest, [&](i64 i, i64 e, i64 seen, const float* s) {
                    give(tile, i, e, seen, s, tops);
                })) good = false;
            end(tile, tops);
        }
        for (i64 n = alone; n < count; n++) {
            const Tile& tile = tiles[n];
            std::vector<Top> tops;
            if (k) for (i64 i = 0; i < tile.count; i++) tops.push_back(room.top(i));
#pragma omp single
            shared.clear();
            if (!pack(call, tile, room)) good = false;
#pragma omp for schedule(dynamic, 1)
            for (i64 first = 0; first < tile.longest; first += SPAN)
                if (!score_span(call, tile, room, first, std::min(tile.longest, first + SPAN),
                                [&](i64 i, i64 e, i64 seen, const float* s) { give(tile, i, e, seen, s, tops); }))
                    good = false;
#pragma omp critical(dsv4_top)
            {
                if (shared.empty()) shared = tops;
                else for (size_t i = 0; i < tops.size(); i++) shared[i].merge(tops[i]);
            }
#pragma omp barrier
#pragma omp single
            end(tile, shared);
        }
    }
    return good ? 0 : 2;
}

template <class... A> int run(const IndexCall& call, A&&... rest) {
#if DSV4_AMX
    if (call.pages.layout != INDEX_F32 && amx_allowed()) return run_with<AmxProducts>(call, rest...);
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    if (call.pages.layout == INDEX_MXFP4) return run_with<WholeProducts>(call, rest...);
#endif
    if (call.pages.layout == INDEX_F32) return run_with<Products<FloatMath>>(call, rest...);
    return run_with<Products<PairMath>>(call, rest...);
}

IndexCall make_call(const void* q, i64 q0, i64 q1, const u8* scales, i64 c0, i64 c1, const float* weights, i64 w0,
                    i64 w1, i64 tokens, i64 heads, void* base, i64 stride, i64 pages, i64 rows, int layout,
                    const i32* lens, i64 ls, const i32* request, i64 rs, const i32* table, i64 t0, i64 t1,
                    i64 requests, i64 width) {
    return {static_cast<const u8*>(q), q0, q1, scales, c0, c1, {weights, w0, w1}, tokens, heads,
            make_pages(base, stride, pages, rows, layout), lens, request, ls, rs, requests, width, {table, t0, t1}};
}

}  // namespace

#define DSV4_INDEX_ARGUMENTS                                                                                       \
    const void *q, i64 q0, i64 q1, const u8 *scales, i64 c0, i64 c1, const float *weights, i64 w0, i64 w1,         \
        i64 tokens, i64 heads, void *base, i64 stride, i64 pages, i64 rows, int layout, const i32 *lens, i64 ls,   \
        const i32 *request, i64 rs, const i32 *table, i64 t0, i64 t1, i64 requests, i64 width, int threads
#define DSV4_INDEX_CALL                                                                                            \
    make_call(q, q0, q1, scales, c0, c1, weights, w0, w1, tokens, heads, base, stride, pages, rows, layout, lens,  \
              ls, request, rs, table, t0, t1, requests, width)

// -> 0; 1 where an entry has no page (nothing is written); 2 where scales are too far apart for f32.
DSV4_API int dsv4_indexer_logits(DSV4_INDEX_ARGUMENTS, float* out, i64 max_len) {
    const IndexCall call = DSV4_INDEX_CALL;
    std::vector<Tile> tiles;
    if (!make_tiles(call, 0, max_len, tiles)) return 1;
    parallel_for(tokens, 1, threads, [&](i64 t) {
        const i64 seen = std::min(std::max<i64>(call.length(t), 0), max_len);
        std::fill(out + t * max_len + seen, out + (t + 1) * max_len, -INFINITY);
    });
    return run(call, 0, tiles, threads,
               [&](const Tile& tile, i64 i, i64 e, i64 seen, const float* s, std::vector<Top>&) {
                   const i64 fits = std::min(seen, max_len - e);
                   if (fits > 0) std::memcpy(out + tile.token[i] * max_len + e, s, fits * sizeof(float));
               },
               [](const Tile&, std::vector<Top>&) {});
}

DSV4_API int dsv4_sparse_indexer(DSV4_INDEX_ARGUMENTS, i32* out, i64 k) {
    const IndexCall call = DSV4_INDEX_CALL;
    std::vector<Tile> tiles;
    if (!make_tiles(call, k, INT64_MAX, tiles)) return 1;
    parallel_for(tokens, 16, threads, [&](i64 t) {  // all visible entries, where they fit
        for (i64 i = 0; i < k; i++) out[t * k + i] = i < call.length(t) ? i32(i) : -1;
    });
    return run(call, k, tiles, threads,
               [](const Tile&, i64 i, i64 e, i64 seen, const float* s, std::vector<Top>& tops) { tops[i].push(s, seen, e); },
               [&](const Tile& tile, std::vector<Top>& tops) {
                   for (i64 i = 0; i < tile.count; i++) tops[i].write(out + tile.token[i] * k);
               });
}

DSV4_API void dsv4_indexer_topk(const float* logits, i64 l0, i64 tokens, i64 length, const i32* lens, i64 ls, i32* out,
                                i64 k, int threads) {
    static thread_local Scratch memory;
    parallel_for(tokens, 1, threads, [&](i64 t) {
        Top top(static_cast<u64*>(memory.get(Top::words(k) * sizeof(u64))), k);
        top.push(logits + t * l0, std::min(std::max<i64>(lens[t * ls], 0), length), 0);
        top.write(out + t * k);
    });
}
