// Attention of one token over its own keys, for both kernels: what a call is, and the plan of a token's work.
#pragma once
#include "simd.h"
#include "values.h"

namespace dsv4 {

// One list of rows: the cache, i32 slots [T, width] and i32 lens [T] with any strides.
struct Source {
    Pages pages;
    View<const i32> slots;
    const i32* lens;
    i64 lens_stride, width;
};

struct Call {
    View<const u16> q;  // [T, H, 512], strides of T and H
    View<u16> out;
    bool f32;  // both hold f32 instead, and weights are not rounded to bf16
    float* lse;  // [T, H], stride of T
    i64 lse_stride;
    const float* sink;
    i64 sink_stride, tokens, heads;
    float scale;
    Source source[2];
    int sources;

    // The same memory as rows of either type.
    Rows queries() const { return {const_cast<u16*>(q.data), q.s0, q.s1, f32}; }
    Rows results() const { return {out.data, out.s0, out.s1, f32}; }

    // The same call for some of its heads.
    Call part(i64 first, i64 count) const {
        Call some = *this;
        some.q.data += first * q.s1 * (f32 ? 2 : 1);
        some.out.data += first * out.s1 * (f32 ? 2 : 1);
        some.lse += first;
        some.sink += first * sink_stride;
        some.heads = count;
        return some;
    }

    i64 listed(i64 t, int s) const {
        const Source& from = source[s];
        return std::min<i64>(std::max<i64>(from.lens[t * from.lens_stride], 0), from.width);
    }
};

struct Key : Row {
    int layout;
    bool operator==(const Key& other) const {
        return front == other.front && tail == other.tail && layout == other.layout;
    }
};

// The rows a token attends to, in the order of its lists; holes and rows outside of the cache are left out.
inline i64 collect(const Call& call, i64 t, Key* keys) {
    i64 n = 0;
    for (int s = 0; s < call.sources; s++) {
        const Source& from = call.source[s];
        const i64 count = call.listed(t, s), end = from.pages.slots();
        for (i64 i = 0; i < count; i++) {
            const i64 slot = from.slots(t, i);
            if (slot < 0 || slot >= end) continue;
            keys[n].front = from.pages.front(slot);
            keys[n].tail = from.pages.tail(slot);
            keys[n++].layout = from.pages.layout;
        }
    }
    return n;
}

// Inlined by force: as a function without effects its calls would be dropped.
__attribute__((always_inline)) inline void prefetch(const Key& key) {
    const int bytes = key.layout == F32_ROW ? 2048 : key.layout == BF16_ROW ? 1024 : key.layout == FP8_ROW ? 512 : 576;
    for (int b = 0; b < bytes; b += 64) __builtin_prefetch(key.front + b, 0, 2);
    __builtin_prefetch(key.front + bytes - 1, 0, 2);
    __builtin_prefetch(key.tail, 0, 2);
}

// Maximum, exponentials and sums of LANES heads over n keys. `s` points at their scores, `stride` apart.
// PACK writes the weights back (rounded to bf16), two keys at a time. -> lse and 1 / (sum + exp(sink - peak)).
template <class PACK>
inline void soften(float* s, i64 n, i64 stride, const Call& call, i64 t, i64 head, float* share, PACK&& pack) {
    Vec peak = load(s);
    for (i64 j = 1; j < n; j++) peak = max(peak, load(s + j * stride));
    Vec total = zero();
    for (i64 block = 0; block < n; block += 64) {  // sums of sums: the error grows with n / 64 + 64
        Vec part = zero();
        for (i64 j = block; j < std::min(n, block + 64); j += 2) {
            const Vec minus = mul(peak, all(-1.0f));
            const Vec a = exp_fast(add(load(s + j * stride), minus));
            const Vec b = j + 1 < n ? exp_fast(add(load(s + (j + 1) * stride), minus)) : zero();
            part = add(part, add(a, b));
            pack(j, a, b);
        }
        total = add(total, part);
    }
    float peaks[LANES], totals[LANES];
    store(peaks, peak);
    store(totals, total);
    for (int i = 0; i < LANES && head + i < call.heads; i++) {
        const float lse = peaks[i] + float(std::log(double(totals[i])));
        const double sink = call.sink[(head + i) * call.sink_stride];
        call.lse[t * call.lse_stride + head + i] = lse;
        share[head + i] = float(1.0 / (1.0 + std::exp(sink - double(lse))) / double(totals[i]));
    }
}

inline void nothing(const Call& call, i64 t) {
    for (i64 h = 0; h < call.heads; h++) {
        call.results().clear(t, h, DIM);
        call.lse[t * call.lse_stride + h] = INFINITY;
    }
}

}  // namespace dsv4
