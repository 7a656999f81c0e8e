// The order of work of one token, for a kernel that knows how to multiply. Three phases: scores of all keys,
// softmax against the final maximum, weighted sum of the keys. Whether one thread does a token alone or a
// team shares it, every number is computed from the same operands in the same order.
#pragma once
#include "attention.h"

namespace dsv4 {

constexpr i64 CHUNK = 1280;  // keys whose decoded rows are held at once; more are decoded a second time

template <class Kernel> struct Token {
    const Call& call;
    i64 t, n, capacity;
    typename Kernel::Work work;
    Key* keys;
    float *scores, *sums, *share;
    i64 padded;  // heads, up to a multiple of LANES

    Token(const Call& c, i64 longest, Cutter& cut)
        : call(c), t(0), n(0), capacity(std::min(longest, CHUNK) + 1), padded((c.heads + LANES - 1) / LANES * LANES) {
        keys = cut.take<Key>(longest + 1);
        scores = cut.take<float>((longest + Kernel::KEYS) * padded);
        sums = longest > CHUNK ? cut.take<float>(padded * DIM) : nullptr;
        share = cut.take<float>(padded);
        work.cut(cut, capacity, padded);
    }

    void begin(i64 token) {
        t = token;
        n = collect(call, t, keys);
    }
    i64 chunks() const { return (n + CHUNK - 1) / CHUNK; }
    i64 chunk_end(i64 c) const { return std::min(n, (c + 1) * CHUNK); }
    i64 tiles(i64 c) const { return (chunk_end(c) - c * CHUNK + Kernel::KEYS - 1) / Kernel::KEYS; }
    i64 head_tiles() const { return (padded + Kernel::HEADS - 1) / Kernel::HEADS; }

    void query(i64 h) { work.pack_query(call, t, h, padded); }

    // Scores of one tile of keys, and its rows for the weighted sum if the token has no second pass.
    void key_tile(i64 c, i64 tile, typename Kernel::Own& own, bool scored) {
        const i64 first = c * CHUNK + tile * Kernel::KEYS, last = std::min(chunk_end(c), first + Kernel::KEYS);
        work.load(own, keys + first, last - first, first - c * CHUNK, !scored || chunks() == 1);
        if (!scored) return;
        const i64 soon = std::min(n, last + Kernel::KEYS);
        i64 ahead = last;
        const i64 step = work.rows(padded);
        for (i64 j = first; j < last; j += step) {
            for (const i64 stop = std::min(soon, ahead + step); ahead < stop; ahead++) prefetch(keys[ahead]);
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

    // One thread, one token.
    void alone(i64 token, typename Kernel::Own& own) {
        begin(token);
        if (n == 0) return nothing(call, t);
        for (i64 i = 0; i < std::min<i64>(n, Kernel::KEYS); i++) prefetch(keys[i]);
        for (i64 h = 0; h < head_tiles(); h++) query(h);
        for (i64 c = 0; c < chunks(); c++)
            for (i64 tile = 0; tile < tiles(c); tile++) key_tile(c, tile, own, true);
        for (i64 v = 0; v < padded / LANES; v++) softmax(v);
        for (i64 c = 0; c < chunks(); c++) {
            if (chunks() > 1)
                for (i64 tile = 0; tile < tiles(c); tile++) key_tile(c, tile, own, false);
            for (i64 p = 0; p < Kernel::PANELS; p++)
                for (i64 h = 0; h < call.heads; h += Kernel::ROWS)
                    weigh(c, p, h, std::min<i64>(Kernel::ROWS, call.heads - h));
        }
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
            for (i64 tile = 0; tile < tiles(c); tile++) key_tile(c, tile, own, true);
        }
#pragma omp for schedule(static)
        for (i64 v = 0; v < padded / LANES; v++) softmax(v);
        const i64 groups = (call.heads + Kernel::ROWS - 1) / Kernel::ROWS, half = (groups + 1) / 2;
        for (i64 c = 0; c < chunks(); c++) {
            if (chunks() > 1) {
#pragma omp for schedule(dynamic, 1)
                for (i64 tile = 0; tile < tiles(c); tile++) key_tile(c, tile, own, false);
            }
#pragma omp for schedule(dynamic, 1)
            for (i64 item = 0; item < 2 * Kernel::PANELS; item++)
                for (i64 g = item % 2 * half; g < std::min(groups, (item % 2 + 1) * half); g++)
                    weigh(c, item / 2, g * Kernel::ROWS, std::min<i64>(Kernel::ROWS, call.heads - g * Kernel::ROWS));
        }
    }
};

// Whole tokens while every thread gets one, then the rest as a team.
template <class Kernel> void attend(const Call& call, int threads) {
    static thread_local Scratch memory, own_memory;
    i64 longest = 1;
    for (i64 t = 0; t < call.tokens; t++) {
        i64 sum = 0;
        for (int s = 0; s < call.sources; s++) sum += call.listed(t, s);
        longest = std::max(longest, sum);
    }
    Cutter measure;
    Token<Kernel> probe(call, longest, measure);
    const i64 team = std::max<i64>(1, threads), together = call.tokens % team, alone = call.tokens - together;
    const auto prepare = [&] {
        Cutter cut(memory.get(measure.used()));
        return Token<Kernel>(call, longest, cut);
    };
    if (team == 1) {
        Token<Kernel> token = prepare();
        typename Kernel::Own own(own_memory.get(Kernel::Own::bytes()));
        for (i64 t = 0; t < call.tokens; t++) token.alone(t, own);
        return;
    }
    Token<Kernel> shared = prepare();
#pragma omp parallel num_threads(int(team))
    {
        typename Kernel::Own own(own_memory.get(Kernel::Own::bytes()));
        if (alone) {
            Token<Kernel> token = prepare();
#pragma omp for schedule(dynamic, 1)
            for (i64 t = 0; t < alone; t++) token.alone(t, own);
        }
        for (i64 t = alone; t < call.tokens; t++) shared.together(t, own);
    }
}

}  // namespace dsv4
