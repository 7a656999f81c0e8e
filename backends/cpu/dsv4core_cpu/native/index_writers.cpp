// The indexer's queries, and the entries that close a window: pool, norm, rotation, codes.
#include <vector>

#include "values.h"

using namespace dsv4;

namespace {

constexpr int SEGMENTS = 8;
enum Format { FP8, FP8_F32, MXFP4, F32 };

constexpr int STEP = 4;  // exponentials that run side by side

// Rows of a window; null adds nothing.
struct Window {
    const float *kv[128], *score[128];
};

// Rows are all over memory, in no pattern that a processor would see, and a burst of requests would stop it: so
// every step of the arithmetic asks for a few lines of what comes next. Inlined by force, as in attention.h.
template <int VECTORS> __attribute__((always_inline)) inline void prefetch(const float* row, int vector) {
    for (int v = vector; row && v < vector + VECTORS; v++) __builtin_prefetch(row + 16 * v, 0, 2);
}

// Rule 4 for a window of eight rows, which are the eight segments. Missing rows weigh exp(-inf) = 0.
template <int VECTORS> void pool_short(const Window& at, const Window* next, float* out) {
    const float *const *kv = at.kv, *const *score = at.score;
    for (int v = 0; v < VECTORS; v++) {
        F16 x[SEGMENTS], peak = F16{} - INFINITY, total = {}, mass = {};
        for (int j = 0; j < SEGMENTS; j++) {
            x[j] = score[j] ? unaligned<F16>(score[j] + 16 * v) : F16{} - INFINITY;
            peak = x[j] > peak ? x[j] : peak;
        }
        for (int j = 0; next && j < SEGMENTS; j++) {
            prefetch<1>(next->score[j], v);
            prefetch<1>(next->kv[j], v);
        }
        for (int first = 0; first < SEGMENTS; first += STEP) {
            F16 e[STEP];
            for (int j = 0; j < STEP; j++) e[j] = x[first + j] - peak;
            exp_nonpositive(e);
            for (int j = 0; j < STEP; j++) {
                mass = mass + e[j];
                if (kv[first + j]) total = total + e[j] * unaligned<F16>(kv[first + j] + 16 * v);
            }
        }
        const F16 c = total / mass;
        std::memcpy(out + 16 * v, &c, sizeof c);
    }
}

// Rule 4 for VECTORS * 16 channels. Row by row, as they lie in memory: a window of states is larger than the
// first cache, and its rows are a power of two apart.
template <int VECTORS> void pool(const Window& at, const Window* next, int window, float* out) {
    if (window == SEGMENTS) return pool_short<VECTORS>(at, next, out);
    const float *const *kv = at.kv, *const *score = at.score;
    const int rows = window / SEGMENTS;
    F16 peak[VECTORS], a[VECTORS], s[VECTORS];
    for (int v = 0; v < VECTORS; v++) peak[v] = F16{} - INFINITY, a[v] = s[v] = F16{};
    for (int j = 0; j < window; j++) {
        if (j < rows) prefetch<VECTORS>(kv[j], 0);
        for (int v = 0; score[j] && v < VECTORS; v++) {
            const F16 x = unaligned<F16>(score[j] + 16 * v);
            peak[v] = x > peak[v] ? x : peak[v];
        }
    }
    for (int first = 0; first < window; first += rows) {
        const bool more = first + rows < window;
        for (int v = 0; v < VECTORS; v += STEP) {
            F16 total[STEP] = {}, mass[STEP] = {};
            for (int j = first; j < first + rows; j++) {
                if (next) prefetch<STEP>(next->score[j], v);
                if (more) prefetch<STEP>(kv[j + rows], v);
                if (score[j]) {
                    F16 e[STEP];
                    for (int i = 0; i < STEP; i++) e[i] = unaligned<F16>(score[j] + 16 * (v + i)) - peak[v + i];
                    exp_nonpositive(e);
                    for (int i = 0; i < STEP; i++) {
                        mass[i] = mass[i] + e[i];
                        total[i] = total[i] + e[i] * unaligned<F16>(kv[j] + 16 * (v + i));
                    }
                }
            }
            // The first segment's sums are added to +0, which changes nothing: they are never -0.
            for (int i = 0; i < STEP; i++) a[v + i] = a[v + i] + total[i], s[v + i] = s[v + i] + mass[i];
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
    const i64 count = i64(closing.size()), grain = std::max<i64>(1, count / (4 * std::max(1, threads)));
    parallel_for(count, grain, threads, [&](i64 i) {
        const i64 t = closing[i], p = positions[t * ps], slot = kv_slots[t * ks];
        Window at, next;
        const bool more = i + 1 < count && (i + 1) % grain;  // and this thread's own
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
