// The indexer's queries, and the entries that close a window: pool, norm, rotation, codes.
#include "values.h"

using namespace dsv4;

namespace {

constexpr int SEGMENTS = 8, CHANNELS = 32;
enum Format { FP8, FP8_F32, MXFP4, F32 };

// Rule 4 for CHANNELS channels: rows of null add nothing.
void pool(const float* const* kv, const float* const* score, int window, int first, float* out) {
    float peak[CHANNELS], a[CHANNELS], s[CHANNELS];
    std::fill(peak, peak + CHANNELS, -INFINITY);
    for (int j = 0; j < window; j++)
        if (score[j])
            for (int c = 0; c < CHANNELS; c++) peak[c] = score[j][first + c] > peak[c] ? score[j][first + c] : peak[c];
    const int rows = window / SEGMENTS;
    for (int segment = 0; segment < SEGMENTS; segment++) {
        float total[CHANNELS] = {}, mass[CHANNELS] = {};
        for (int j = segment * rows; j < (segment + 1) * rows; j++) {
            if (!score[j]) continue;
            const float *x = score[j] + first, *v = kv[j] + first;
            for (int c = 0; c < CHANNELS; c++) {
                const float e = exp_nonpositive(x[c] - peak[c]);
                mass[c] = mass[c] + e;
                total[c] = total[c] + e * v[c];
            }
        }
        for (int c = 0; c < CHANNELS; c++) {
            a[c] = segment ? a[c] + total[c] : total[c];
            s[c] = segment ? s[c] + mass[c] : mass[c];
        }
    }
    for (int c = 0; c < CHANNELS; c++) out[c] = a[c] / s[c];
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
    parallel_for(live, 1, threads, [&](i64 t) {
        if (!closes(t)) return;
        const i64 p = positions[t * ps], slot = kv_slots[t * ks];
        const float *kv[128], *score[128];
        for (int j = 0; j < window; j++) {
            const i64 at = p - window + 1 + j;
            const float* row = at < 0 ? nullptr : states.row(request[t * rs], at);
            const i64 half = j / ratio * dim;  // the older half reads the first half of the projection
            kv[j] = row ? row + half : nullptr;
            score[j] = row ? row + width + half : nullptr;
        }
        float y[DIM];
        for (int c = 0; c < dim; c += CHANNELS) pool(kv, score, window, c, y + c);
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
            u8* codes = static_cast<u8*>(values) + at * 128;
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
            folded[at] = ((w.one(t, h) * scale) * softmax_scale) * head_scale;
        }
    });
    return 0;
}
