// Index tables and lists: integers only. A function that returns 1 has found an index out of range.
#include "common.h"

using namespace dsv4;

namespace {

struct Blocks {
    View<const i32> table;
    i64 requests, width, rows;

    // Slot of a row of a request, -1 where the table has no page.
    i64 slot(i64 request, i64 index) const {
        if (index < 0 || index / rows >= width) return -1;
        const i64 page = table(request, index / rows);
        return page < 0 ? -1 : page * rows + index % rows;
    }
};

bool known(const i32* request, i64 stride, i64 n, i64 requests) {
    for (i64 i = 0; i < n; i++)
        if (request[i * stride] < 0 || request[i * stride] >= requests) return false;
    return true;
}

}  // namespace

DSV4_API int dsv4_compressed_slots(const i64* positions, i64 ps, i64 tokens, const i64* slots, i64 ss, i64 live,
                                   const i32* request, i64 rs, const i32* table, i64 t0, i64 t1, i64 requests, i64 width,
                                   i64 ratio, i64 rows, i64* out) {
    const Blocks blocks{{table, t0, t1}, requests, width, rows};
    if (requests && !known(request, rs, live, requests)) return 1;
    for (i64 t = 0; t < tokens; t++) {
        const i64 p = positions[t * ps];
        const bool boundary = t < live && requests && p >= 0 && (p + 1) % ratio == 0 && slots[t * ss] >= 0;
        out[t] = boundary ? blocks.slot(request[t * rs], p / ratio) : -1;
    }
    return 0;
}

DSV4_API int dsv4_global_topk(const i32* topk, i64 k0, i64 k1, i64 tokens, i64 k, const i32* request, i64 rs,
                              const i32* table, i64 t0, i64 t1, i64 requests, i64 width, const u8* valid, i64 vs,
                              i64 rows, i32* slots, i32* lens, int threads) {
    const Blocks blocks{{table, t0, t1}, requests, width, rows};
    const View<const i32> listed{topk, k0, k1};
    if (requests && !known(request, rs, tokens, requests)) return 1;
    parallel_for(tokens, 16, threads, [&](i64 t) {
        i32* row = slots + t * k;
        i64 n = 0;
        for (i64 i = 0; requests && valid[t * vs] && i < k; i++) {
            const i64 slot = blocks.slot(request[t * rs], listed(t, i));
            if (slot >= 0 && slot <= INT32_MAX) row[n++] = i32(slot);  // as if there were no page
        }
        std::fill(row + n, row + k, -1);
        lens[t] = i32(n);
    });
    return 0;
}

DSV4_API void dsv4_combine(const i32* topk, i64 k0, i64 k1, i64 tokens, const i32* starts, i64 qs, const i32* seq_lens,
                           i64 ls, const i32* gathered, i64 gs, i64 requests, i64 window, i64 ratio, i64 top_k, i64 M,
                           i64 N, i32* out, i64 columns, i32* lens, int threads) {
    const View<const i32> listed{topk, k0, k1};
    const auto start = [&](i64 b) { return i64(starts[b * qs]) - starts[0]; };
    const i64 queries = start(requests);
    parallel_for(tokens, 16, threads, [&](i64 t) {
        if (t >= queries) {  // padding behind the last query
            std::fill(out + t * columns, out + (t + 1) * columns, -1);
            lens[t] = 0;
            return;
        }
        i64 b = 0;  // the last request that starts at or before t
        for (i64 low = 0, high = requests; low <= high;) {
            const i64 middle = (low + high) / 2;
            if (start(middle) <= t) b = middle, low = middle + 1;
            else high = middle - 1;
        }
        b = std::min(b, requests - 1);
        const i64 seq = seq_lens[b * ls], p = seq - (start(b + 1) - start(b)) + t - start(b);
        const i64 closed = p + 1 >= 0 || !top_k ? p + 1 : p + 2 - ratio;  // rounded down below zero too
        const i64 entries = top_k ? std::min(closed / ratio, top_k) : 0, first = std::max<i64>(p - window + 1, 0);
        const i64 count = entries + p + 1 - first;
        i32* row = out + t * columns;
        for (i64 c = 0; c < columns; c++) {
            i64 x = -1;
            if (c < entries) {
                x = listed(t, c);
                x = x >= 0 ? x + b * M : -1;
            } else if (c < count) {
                x = b * M + N + first + c - entries - (seq - gathered[b * gs]);
            }
            row[c] = i32(x);
        }
        lens[t] = i32(count);
    });
}
