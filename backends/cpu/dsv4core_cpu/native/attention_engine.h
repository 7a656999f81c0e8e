// The order of work of one token, for a kernel that knows how to multiply. Three phases: scores of all keys,
// softmax against the final maximum, weighted sum of the keys. Whether one thread does a token alone, next to
// others whose lists begin alike, or a team shares it: every number is computed from the same operands in the
// same order.
#pragma once
#include <vector>

#include "attention.h"

namespace dsv4 {

constexpr i64 CHUNK = 1280;  // keys whose decoded rows are held at once; more are decoded a second time
constexpr i64 QUERIES = 8;  // tokens of a tile at most
constexpr i64 TILE_SCORES = 8 << 20;  // bytes of scores of a tile at most
constexpr i64 HEADS_ALONE = 32;  // with that many heads for every thread, each decodes all rows for its own

template <class Kernel> struct Token {
    const Call& call;
    i64 t, n, capacity;
    typename Kernel::Work work;
    Key* keys;
    float *scores, *sums, *share;
    i64 padded;  // heads, up to a multiple of LANES

    // The rows that a lender has loaded are there for the borrower too.
    Token(const Call& c, i64 longest, Cutter& cut, const Token* lender = nullptr)
        : call(c), t(0), n(0), capacity(std::min(longest, CHUNK) + 1), padded((c.heads + LANES - 1) / LANES * LANES) {
        keys = cut.take<Key>(longest + 1);
        scores = cut.take<float>((longest + Kernel::KEYS) * padded);
        sums = longest > CHUNK ? cut.take<float>(padded * DIM) : nullptr;
        share = cut.take<float>(padded);
        if (lender) work = lender->work;
        else work.hold(cut, capacity);
        work.cut(cut, padded);
    }

    void begin(i64 token) {
        t = token;
        n = collect(call, t, keys);
    }
    // How many of the first `most` rows are those of another token.
    i64 alike(const Token& other, i64 most) const {
        i64 i = 0;
        for (most = std::min(most, n); i < most && keys[i] == other.keys[i]; i++) {}
        return i;
    }
    void exchange(Token& other) {
        std::swap(t, other.t);
        std::swap(n, other.n);
        std::swap(keys, other.keys);
    }
    i64 chunks() const { return (n + CHUNK - 1) / CHUNK; }
    i64 chunk_end(i64 c) const { return std::min(n, (c + 1) * CHUNK); }
    i64 tiles(i64 c) const { return (chunk_end(c) - c * CHUNK + Kernel::KEYS - 1) / Kernel::KEYS; }
    i64 head_tiles() const { return (padded + Kernel::HEADS - 1) / Kernel::HEADS; }

    void query(i64 h) { work.pack_query(call, t, h, padded); }

    // The rows of one tile of keys for its scores, and those for the weighted sum if they are to stay.
    void load(i64 c, i64 tile, typename Kernel::Own& own, bool keep) {
        const i64 first = c * CHUNK + tile * Kernel::KEYS, last = std::min(chunk_end(c), first + Kernel::KEYS);
        work.load(own, keys + first, last - first, first - c * CHUNK, keep);
    }

    // Scores of the tile that was loaded; `ahead` fetches the next one.
    void score(i64 c, i64 tile, typename Kernel::Own& own, bool ahead) {
        const i64 first = c * CHUNK + tile * Kernel::KEYS, last = std::min(chunk_end(c), first + Kernel::KEYS);
        const i64 soon = ahead ? std::min(n, last + Kernel::KEYS) : last, step = work.rows(padded);
        for (i64 j = first, next = last; j < last; j += step) {
            for (const i64 stop = std::min(soon, next + step); next < stop; next++) prefetch(keys[next]);
            for (i64 row = j; row < last && row < j + step;) {
                const i64 left = std::min(last, j + step) - row, rows = left == step ? step : std::min<i64>(left, Kernel::ROWS);
                for (i64 h = 0; h < head_tiles(); h++)
                    work.dots(own, row - first, row - c * CHUNK, rows, h, padded, scores + row * padded, call.scale);
                row += rows;
            }
        }
    }

    void softmax(i64 v) { work.soften(call, t, n, v * LANES, scores, padded, share); }

    void weigh(i64 c, i64 panel, i64 head, i64 heads) {
        const i64 first = c * CHUNK, count = chunk_end(c) - first;
        work.weigh(call, t, panel, head, heads, first, count, scores, padded, share, sums, c == 0, c + 1 == chunks());
    }

    void weigh(i64 c) {
        for (i64 p = 0; p < Kernel::PANELS; p++)
            for (i64 h = 0; h < call.heads; h += Kernel::ROWS)
                weigh(c, p, h, std::min<i64>(Kernel::ROWS, call.heads - h));
    }

    // A team on one token: every phase is split, with a barrier behind it. Called by all threads of the team.
    void together(i64 token, typename Kernel::Own& own) {
#pragma omp single
        begin(token);
        if (n == 0) {
#pragma omp single
            nothing(call, t);
            return;
        }
#pragma omp for schedule(static)
        for (i64 h = 0; h < head_tiles(); h++) query(h);
        for (i64 c = 0; c < chunks(); c++) {
#pragma omp for schedule(dynamic, 1)
            for (i64 tile = 0; tile < tiles(c); tile++) {
                load(c, tile, own, chunks() == 1);
                score(c, tile, own, true);
            }
        }
#pragma omp for schedule(static)
        for (i64 v = 0; v < padded / LANES; v++) softmax(v);
        const i64 groups = (call.heads + Kernel::ROWS - 1) / Kernel::ROWS, half = (groups + 1) / 2;
        for (i64 c = 0; c < chunks(); c++) {
            if (chunks() > 1) {
#pragma omp for schedule(dynamic, 1)
                for (i64 tile = 0; tile < tiles(c); tile++) load(c, tile, own, true);
            }
#pragma omp for schedule(dynamic, 1)
            for (i64 item = 0; item < 2 * Kernel::PANELS; item++)
                for (i64 g = item % 2 * half; g < std::min(groups, (item % 2 + 1) * half); g++)
                    weigh(c, item / 2, g * Kernel::ROWS, std::min<i64>(Kernel::ROWS, call.heads - g * Kernel::ROWS));
        }
    }
};

// One thread, tokens whose lists have their first `common` rows in common: those are loaded once for all.
template <class Kernel> void tile_of_queries(Token<Kernel>* token, i64 count, i64 common, typename Kernel::Own& own) {
    const auto shared = [&](i64 c) {  // whole tiles of a chunk
        const i64 keys = std::clamp<i64>(common - c * CHUNK, 0, CHUNK);
        return keys == CHUNK ? (CHUNK + Kernel::KEYS - 1) / Kernel::KEYS : keys / Kernel::KEYS;
    };
    i64 chunks = 1;
    for (i64 q = 0; q < count; q++) {
        chunks = std::max(chunks, token[q].chunks());
        for (i64 h = 0; h < token[q].head_tiles(); h++) token[q].query(h);
    }
    const bool keep = chunks == 1;
    for (i64 i = 0; i < std::min<i64>(token->n, Kernel::KEYS); i++) prefetch(token->keys[i]);
    for (i64 c = 0; c < chunks; c++)
        for (i64 tile = 0; tile < shared(c); tile++) {
            token->load(c, tile, own, keep);
            for (i64 q = 0; q < count; q++) token[q].score(c, tile, own, q == 0);
        }
    for (Token<Kernel>* one = token; one < token + count; one++) {
        for (i64 c = 0; c < one->chunks(); c++)
            for (i64 tile = shared(c); tile < one->tiles(c); tile++) {
                one->load(c, tile, own, keep);
                one->score(c, tile, own, true);
            }
        for (i64 v = 0; v < one->padded / LANES; v++) one->softmax(v);
        if (keep) one->weigh(0);
    }
    for (i64 c = 0; c < chunks && !keep; c++) {
        for (i64 tile = 0; tile < shared(c); tile++) token->load(c, tile, own, true);
        for (Token<Kernel>* one = token; one < token + count; one++) {
            if (c >= one->chunks()) continue;
            for (i64 tile = shared(c); tile < one->tiles(c); tile++) one->load(c, tile, own, true);
            one->weigh(c);
        }
    }
}

// What one thread needs for tokens of its own, up to `size` at a time.
template <class Kernel> struct Tile {
    std::vector<Token<Kernel>> token;

    Tile(const Call& call, i64 longest, i64 size, Cutter& cut) {
        token.reserve(size);
        for (i64 q = 0; q < size; q++) token.emplace_back(call, longest, cut, q ? token.data() : nullptr);
    }

    // Neighbours in a prefill list the same entries while all entries are listed; where lists do not begin alike,
    // every token goes through the memory of the first.
    void run(i64 begin, i64 end, typename Kernel::Own& own) {
        const i64 count = end - begin;
        i64 common = 0;
        for (i64 q = 0; q < count; q++) {
            token[q].begin(begin + q);
            common = q ? token[q].alike(token[0], common) : token[0].n;
        }
        if (common >= Kernel::KEYS) return tile_of_queries(token.data(), count, common, own);
        for (i64 q = 0; q < count; q++) {
            if (q) token[0].exchange(token[q]);
            if (token[0].n) tile_of_queries(token.data(), 1, token[0].n, own);
            else nothing(token[0].call, token[0].t);
        }
    }
};

// Whole tokens while every thread gets one. Of what is left every thread takes some heads, so that cores share
// nothing but the cache; where that would leave few heads, a team shares tiles of keys and panels of channels.
template <class Kernel> void attend(const Call& call, int threads) {
    static thread_local Scratch memory, own_memory;
    i64 longest = 1;
    for (i64 t = 0; t < call.tokens; t++) {
        i64 sum = 0;
        for (int s = 0; s < call.sources; s++) sum += call.listed(t, s);
        longest = std::max(longest, sum);
    }
    const i64 team = std::max<i64>(1, threads), rest = call.tokens % team, alone = call.tokens - rest;
    // Eight tiles for each thread, so that none waits long for the last.
    const i64 most = std::clamp<i64>(TILE_SCORES / (longest * call.heads * 4), 1, QUERIES);
    const i64 size = std::clamp<i64>(alone / (8 * team), 1, most);
    const auto prepare = [&](const Call& part) {
        Cutter measure;
        Tile<Kernel>(call, longest, size, measure);  // parts take no more
        Cutter cut(memory.get(measure.used()));
        return Tile<Kernel>(part, longest, size, cut);
    };
    if (team == 1) {
        Tile<Kernel> tile = prepare(call);
        typename Kernel::Own own(own_memory.get(Kernel::Own::bytes()));
        for (i64 t = 0; t < alone; t += size) tile.run(t, std::min(alone, t + size), own);
        return;
    }
    const i64 heads = (call.heads + team * LANES - 1) / (team * LANES) * LANES;
    const bool split = call.heads >= team * HEADS_ALONE;
    Tile<Kernel> shared = prepare(call);  // the memory that this thread has next to the others
#pragma omp parallel num_threads(int(team))
    {
        typename Kernel::Own own(own_memory.get(Kernel::Own::bytes()));
        if (alone) {
            Tile<Kernel> tile = prepare(call);
#pragma omp for schedule(dynamic, 1)
            for (i64 t = 0; t < alone; t += size) tile.run(t, std::min(alone, t + size), own);
        }
        if (split) {
#pragma omp for schedule(static)
            for (i64 first = 0; first < call.heads; first += heads) {
                const Call part = call.part(first, std::min(heads, call.heads - first));
                Tile<Kernel> tile = prepare(part);
                for (i64 t = alone; t < call.tokens; t++) tile.run(t, t + 1, own);
            }
        } else {
            for (i64 t = alone; t < call.tokens; t++) shared.token[0].together(t, own);
        }
    }
}

}  // namespace dsv4
