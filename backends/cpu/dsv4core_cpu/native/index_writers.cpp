// The indexer's queries, and the entries that close a window: pool, norm, rotation, codes.
#include <vector>

#include "values.h"

using namespace dsv4;

namespace {

constexpr int SEGMENTS = 8;
enum Format { FP8, FP8_F32, MXFP4, F32 };

// Rule 4 for a window of eight rows, which are the eight segments.
template <int VECTORS> void pool_short(const float* const* kv, const float* const* score, float* out) {
    for (int v = 0; v < VECTORS; v++) {
        F16 x[SEGMENTS], peak = F16{} - INFINITY, total = {}, mass = {};
        for (int j = 0; j < SEGMENTS; j++) {
            if (!score[j]) continue;
            x[j] = unaligned<F16>(score[j] + 16 * v);
            peak = x[j] > peak ? x[j] : peak;
        }
        for (int j = 0; j < SEGMENTS; j++) {
            if (!score[j]) continue;
            const F16 e = exp_nonpositive(x[j] - peak);
            mass = mass + e;
            total = total + e * unaligned<F16>(kv[j] + 16 * v);
        }
        const F16 c = total / mass;
        std::memcpy(out + 16 * v, &c, sizeof c);
    }
}

// Rule 4 for VECTORS * 16 channels: rows of null add nothing. Row by row, as they lie in memory: a window of
// states is larger than the first cache, and its rows are a power of two apart.
struct Window {
    const float *kv[128], *score[128];
};

template <int VECTORS> inline void prefetch(const float* row) {
    for (int v = 0; row && v < VECTORS; v++) __builtin_prefetch(row + 16 * v, 0, 2);
}

template <int VECTORS> void pool(const Window& at, const Window* next, int window, float* out) {
    constexpr int AHEAD = 4;  // rows; their places are no pattern that a processor would see
    const float *const *kv = at.kv, *const *score = at.score;
    if (window == SEGMENTS) {
        for (int j = 0; next && j < window; j++) {
            prefetch<VECTORS>(next->score[j]);
            prefetch<VECTORS>(next->kv[j]);
        }
        return pool_short<VECTORS>(kv, score, out);
    }
    F16 peak[VECTORS], a[VECTORS], s[VECTORS], total[VECTORS], mass[VECTORS];
    for (int v = 0; v < VECTORS; v++) peak[v] = F16{} - INFINITY;
    for (int j = 0; j < window; j++) {
        if (j + AHEAD < window) prefetch<VECTORS>(score[j + AHEAD]);
        prefetch<VECTORS>(kv[j]);
        for (int v = 0; score[j] && v < VECTORS; v++) {
            const F16 x = unaligned<F16>(score[j] + 16 * v);
            peak[v] = x > peak[v] ? x : peak[v];
        }
    }
    const int rows = window / SEGMENTS;
    for (int segment = 0; segment < SEGMENTS; segment++) {
        for (int v = 0; v < VECTORS; v++) total[v] = mass[v] = F16{};
        for (int j = segment * rows; j < (segment + 1) * rows; j++)
            for (int v = 0; score[j] && v < VECTORS; v++) {
                const F16 e = exp_nonpositive(unaligned<F16>(score[j] + 16 * v) - peak[v]);
                mass[v] = mass[v] + e;
                total[v] = total[v] + e * unaligned<F16>(kv[j] + 16 * v);
            }
        for (int v = 0; v < VECTORS; v++) {
            a[v] = segment ? a[v] + total[v] : total[v];
            s[v] = segment ? s[v] + mass[v] : mass[v];
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        const F16 c = a[v] / s[v];
        std::memcpy(out + 16 * v, &c, sizeof c);
    }
}

struct States {
    const float* data;
    i64 s0, s1, pages, rows, width;
    View<const i32> table;
    i64 requests, columns;

    // Row of a position, or null where there is no page.
    const float* row(i64 request, i64 position) const {
        const i64 column = position / rows;
        if (column >= columns) return nullptr;
        const i64 page = table(request, column);
        return page < 0 || page >= pages ? nullptr : data + page * s0 + position % rows * s1;
    }
};

}  // namespace

DSV4_API int dsv4_compress(const float* state, i64 st0, i64 st1, i64 st_pages, i64 st_rows, i64 width,
                           const i64* positions, i64 ps, const i32* request, i64 rs, const i64* slots, i64 ss, i64 live,
                           const i32* table, i64 t0, i64 t1, i64 requests, i64 columns, const float* cos_sin, i64 cs,
                           i64 table_rows, void* weight, int weight_f32, void* base, i64 stride, i64 pages, i64 rows,
                           int layout, const i64* kv_slots, i64 ks, i64 ratio, int dim, float eps, int hadamard,
                           int threads) {
    const States states{state, st0, st1, st_pages, st_rows, width, {table, t0, t1}, requests, columns};
    const Pages cache = make_pages(base, stride, pages, rows, layout);
    const int window = int(width / dim * ratio);
    const Rows norm{weight, 0, 0, weight_f32};
    const auto closes = [&](i64 t) {
        return (positions[t * ps] + 1) % ratio == 0 && slots[t * ss] >= 0 && kv_slots[t * ks] >= 0;
    };
    for (i64 t = 0; t < live; t++) {
        if (!closes(t)) continue;
        const i64 p = positions[t * ps], r = request[t * rs], first = std::max<i64>(p - window + 1, 0);
        if (p < 0 || p - ratio + 1 >= table_rows || r < 0 || r >= requests || kv_slots[t * ks] >= cache.slots()) return 1;
        for (i64 q = first; q <= p; q++)
            if (!states.row(r, q)) return 1;
    }
    float w[DIM];
    norm.load(0, 0, 0, dim, w);
    std::vector<i64> closing;
    for (i64 t = 0; t < live; t++)
        if (closes(t)) closing.push_back(t);
    const auto window_of = [&](i64 t, Window& found) {
        const i64 p = positions[t * ps];
        for (int j = 0; j < window; j++) {
            const i64 at = p - window + 1 + j;
            const float* row = at < 0 ? nullptr : states.row(request[t * rs], at);
            const i64 half = j / ratio * dim;  // the older half reads the first half of the projection
            found.kv[j] = row ? row + half : nullptr;
            found.score[j] = row ? row + width + half : nullptr;
        }
    };
    parallel_for(i64(closing.size()), ratio == 4 ? 8 : 1, threads, [&](i64 i) {
        const i64 t = closing[i], p = positions[t * ps], slot = kv_slots[t * ks];
        Window at, next;
        const bool more = ratio == 4 && i + 1 < i64(closing.size());
        window_of(t, at);
        if (more) window_of(closing[i + 1], next);
        float y[DIM];
        if (dim == DIM) pool<DIM / 16>(at, more ? &next : nullptr, window, y);
        else pool<128 / 16>(at, more ? &next : nullptr, window, y);
        const float inv = inverse_rms(y, dim, eps);
        for (int i = 0; i < dim; i++) y[i] = (y[i] * inv) * w[i];
        rotate<false>(y + dim - ROPE, cos_sin + (p - ratio + 1) * cs);
        if (layout != F32_ROW && layout != INDEX_F32)
            for (int i = 0; i < dim; i++) y[i] = from_bf16(to_bf16(y[i]));
        if (hadamard) {
            hadamard128(y);
            round_bf16<128>(y);
        }
        if (dim == DIM) encode_main(layout, y, cache.front(slot), cache.tail(slot));
        else encode_index(layout, y, cache.front(slot), cache.tail(slot));
    });
    return 0;
}

DSV4_API int dsv4_index_query(const i64* positions, i64 ps, void* q, i64 q0, i64 q1, int q_f32, i64 tokens, i64 heads,
                              const float* cos_sin, i64 cs, i64 table_rows, void* weights, i64 w0, i64 w1, int w_f32,
                              float softmax_scale, float head_scale, int format, int hadamard, void* values, u8* scales,
                              float* folded, int threads) {
    const Rows from{q, q0, q1, q_f32}, w{weights, w0, w1, w_f32};
    for (i64 t = 0; t < tokens; t++)
        if (positions[t * ps] < 0 || positions[t * ps] >= table_rows) return 1;
    parallel_for(tokens, 1, threads, [&](i64 t) {
        const float* angle = cos_sin + positions[t * ps] * cs;
        for (i64 h = 0; h < heads; h++) {
            const i64 at = t * heads + h;
            float x[128];
            float scale = 1.0f;
            from.load(t, h, 0, 128, x);
            rotate<false>(x + 128 - ROPE, angle);
            if (format != F32) round_bf16<128>(x);
            if (hadamard) {
                hadamard128(x);
                round_bf16<128>(x);
            }
            u8 codes[128];  // bytes may alias anything, so they are written through a local array
            if (format == F32) {
                std::memcpy(static_cast<float*>(values) + at * 128, x, sizeof x);
            } else if (format == MXFP4) {
                encode_mxfp4(x, static_cast<u8*>(values) + at * 64, scales + at * 4);
            } else if (format == FP8) {
                const int exponent = exponent_e4m3(std::max(largest(x, 128), FLOOR_E4M3));
                const float inverse = power_of_two(-exponent);
                for (int i = 0; i < 128; i++) codes[i] = encode_e4m3(x[i] * inverse);
                scale = power_of_two(exponent);
            } else {
                scale = plain_scale(x);
                for (int i = 0; i < 128; i++) codes[i] = encode_e4m3(x[i] / scale);
            }
            if (format == FP8 || format == FP8_F32) std::memcpy(static_cast<u8*>(values) + at * 128, codes, 128);
            folded[at] = ((w.one(t, h) * scale) * softmax_scale) * head_scale;
        }
    });
    return 0;
}
