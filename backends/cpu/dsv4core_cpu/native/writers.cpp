// Norms, rotations and everything that writes or reads rows of the main caches. A function that returns 1 has
// found an index out of range and written nothing.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "values.h"

using namespace dsv4;

// Large results are fresh memory: with huge pages the first touch costs a 512th of the faults.
DSV4_API void dsv4_advise(void* data, i64 bytes) {
#ifdef MADV_HUGEPAGE
    const u64 first = (reinterpret_cast<u64>(data) + 4095) / 4096 * 4096, last = reinterpret_cast<u64>(data) + bytes;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

namespace {

struct Table {
    const float* data;
    i64 stride, rows;
    const float* operator()(i64 p) const { return data + p * stride; }
};

bool inside(const i64* x, i64 stride, i64 n, i64 end) {
    bool good = true;
    for (i64 i = 0; i < n; i++) good &= x[i * stride] >= 0 && x[i * stride] < end;
    return good;
}
bool below(const i64* x, i64 stride, i64 n, i64 end) {
    bool good = true;
    for (i64 i = 0; i < n; i++) good &= x[i * stride] < end;
    return good;
}

void normed(const Rows& in, const Rows& out, i64 tokens, int n, const Rows& weight, float eps, int threads) {
    const int padded = (n + 15) / 16 * 16;
    parallel_for(tokens, 8, threads, [&](i64 t) {
        static thread_local Scratch memory;
        Cutter cut(memory.get(2 * (padded + 16) * sizeof(float)));
        float *y = cut.take<float>(padded), *w = cut.take<float>(padded);
        in.load(t, 0, 0, n, y);
        std::fill(y + n, y + padded, 0.0f);  // zeros add nothing to a sum of squares
        weight.load(0, 0, 0, n, w);
        const float inv = inverse_rms(y, n, eps);
        for (int i = 0; i < n; i++) y[i] = (y[i] * inv) * w[i];
        out.store(t, 0, 0, n, y);
    });
}

}  // namespace

DSV4_API void dsv4_rmsnorm(void* in, i64 in_stride, int in_f32, void* out, i64 tokens, int n, void* weight, int weight_f32,
                           float eps, int threads) {
    normed({in, in_stride, 0, in_f32}, {out, n, 0, in_f32}, tokens, n, {weight, 0, 0, weight_f32}, eps, threads);
}

DSV4_API int dsv4_qnorm_rope_insert(void* q, i64 q0, i64 q1, int q_f32, void* out, i64 tokens, i64 heads, i64 padded,
                                    void* kv, i64 kv0, int kv_f32, const i64* positions, i64 ps, const float* cos_sin,
                                    i64 cs, i64 table_rows, void* base, i64 stride, i64 pages, i64 rows, int layout,
                                    const i64* slots, i64 ss, i64 live, float eps, int threads) {
    const Rows from{q, q0, q1, q_f32}, to{out, padded * DIM, DIM, q_f32}, keys{kv, kv0, 0, kv_f32};
    const Table table{cos_sin, cs, table_rows};
    const Pages cache = make_pages(base, stride, pages, rows, layout);
    if (!inside(positions, ps, tokens, table_rows) || !below(slots, ss, live, cache.slots())) return 1;
    parallel_for(tokens, 1, threads, [&](i64 t) {
        float y[DIM];
        const float* angle = table(positions[t * ps]);
        for (i64 h = 0; h < heads; h++) {
            from.load(t, h, 0, DIM, y);
            const float inv = inverse_rms(y, DIM, eps);
            for (int i = 0; i < DIM; i++) y[i] = y[i] * inv;
            rotate<false>(y + NOPE, angle);
            to.store(t, h, 0, DIM, y);
        }
        for (i64 h = heads; h < padded; h++) to.clear(t, h, DIM);
        const i64 slot = t < live ? slots[t * ss] : -1;
        if (slot < 0) return;
        keys.load(t, 0, 0, DIM, y);
        rotate<false>(y + NOPE, angle);
        encode_main(layout, y, cache.front(slot), cache.tail(slot));
    });
    return 0;
}

DSV4_API int dsv4_insert(void* k, i64 k0, int f32, void* base, i64 stride, i64 pages, i64 rows, int layout,
                         const i64* slots, i64 ss, i64 live, int threads) {
    const Rows keys{k, k0, 0, f32};
    const Pages cache = make_pages(base, stride, pages, rows, layout);
    if (!below(slots, ss, live, cache.slots())) return 1;
    parallel_for(live, 32, threads, [&](i64 t) {
        const i64 slot = slots[t * ss];
        if (slot < 0) return;
        float y[DIM];
        keys.load(t, 0, 0, DIM, y);
        encode_main(layout, y, cache.front(slot), cache.tail(slot));
    });
    return 0;
}

DSV4_API int dsv4_gather(void* out, i64 o0, i64 o1, i64 requests, i64 room, void* base, i64 stride, i64 pages, i64 rows,
                         int layout, const i32* lens, i64 ls, const i32* counts, i64 gs, const i32* table, i64 t0,
                         i64 t1, i64 width, i64 offset, int threads) {
    const Pages cache = make_pages(base, stride, pages, rows, layout);
    const View<const i32> block{table, t0, t1};
    i64* starts = static_cast<i64*>(std::malloc((requests + 1) * sizeof(i64)));
    bool good = starts != nullptr;
    for (i64 b = 0, sum = 0; good && b <= requests; b++) {
        starts[b] = sum;
        if (b == requests) break;
        const i64 length = lens[b * ls], count = counts ? counts[b * gs] : length;
        good = count >= 0 && count <= length && offset >= 0 && offset + count <= room;
        const i64 end = (length + rows - 1) / rows;
        good = good && (!count || end <= width);
        for (i64 c = (length - count) / rows; good && count && c < end; c++)
            good = block(b, c) >= 0 && block(b, c) < pages;
        sum += count;
    }
    if (good)
        parallel_for(starts[requests], 64, threads, [&](i64 i) {
            const i64 b = std::upper_bound(starts, starts + requests + 1, i) - starts - 1, place = i - starts[b];
            const i64 row = lens[b * ls] - (starts[b + 1] - starts[b]) + place;
            const i64 slot = i64(block(b, row / rows)) * rows + row % rows;
            row_to_bf16(layout, {cache.front(slot), cache.tail(slot)},
                        static_cast<u16*>(out) + b * o0 + (offset + place) * o1);
        });
    std::free(starts);
    return good ? 0 : 1;
}

static void put(float* to, const float* from, i64 n, bool far) {
    const size_t bytes = n * sizeof(float);
    if (far) stream(reinterpret_cast<u8*>(to), reinterpret_cast<const u8*>(from), bytes);
    else std::memcpy(to, from, bytes);
}

DSV4_API int dsv4_save_states(const float* kv, i64 kv0, const float* score, i64 s0, const float* ape, i64 a0,
                              const i64* positions, i64 ps, float* state, i64 st0, i64 st1, i64 pages, i64 rows,
                              i64 width, const i64* slots, i64 ss, i64 live, i64 ratio, int threads) {
    if (!below(slots, ss, live, pages * rows)) return 1;
    const bool far = 2 * live * width * i64(sizeof(float)) >= FAR;
    parallel_for(live, 16, threads, [&](i64 t) {
        const i64 slot = slots[t * ss];
        if (slot < 0) return;
        float* to = state + slot / rows * st0 + slot % rows * st1;
        const i64 phase = ((positions[t * ps] % ratio) + ratio) % ratio;
        const float *x = score + t * s0, *y = ape + phase * a0;
        put(to, kv + t * kv0, width, far);
        for (i64 i = 0, n = 0; i < width; i += n) {
            float sum[256];
            n = std::min<i64>(width - i, 256);
            for (i64 j = 0; j < n; j++) sum[j] = x[i + j] + y[i + j];
            put(to + width + i, sum, n, far);
        }
        if (far) stream_end();
    });
    return 0;
}

DSV4_API int dsv4_inverse_rope(void* o, i64 o0, i64 o1, int f32, void* out, i64 tokens, i64 heads, const i64* positions,
                               i64 ps, const float* cos_sin, i64 cs, i64 table_rows, int threads) {
    const Rows from{o, o0, o1, f32}, to{out, heads * DIM, DIM, f32};
    const Table table{cos_sin, cs, table_rows};
    if (!inside(positions, ps, tokens, table_rows)) return 1;
    const size_t item = f32 ? 4 : 2;
    parallel_for(tokens, 1, threads, [&](i64 t) {
        for (i64 h = 0; h < heads; h++) {
            float y[ROPE];
            std::memcpy(static_cast<char*>(out) + (t * heads + h) * DIM * item,
                        static_cast<const char*>(o) + (t * o0 + h * o1) * item, NOPE * item);
            from.load(t, h, NOPE, ROPE, y);
            rotate<true>(y, table(positions[t * ps]));
            to.store(t, h, NOPE, ROPE, y);
        }
    });
    return 0;
}

DSV4_API int dsv4_inverse_rope_quant(void* o, i64 o0, i64 o1, int f32, u8* codes, float* scales, u8* bytes, i64 tokens,
                                     i64 heads, const i64* positions, i64 ps, const float* cos_sin, i64 cs,
                                     i64 table_rows, int threads) {
    constexpr int GROUP = 128, GROUPS = DIM / GROUP;
    const Rows from{o, o0, o1, f32};
    const Table table{cos_sin, cs, table_rows};
    if (!inside(positions, ps, tokens, table_rows)) return 1;
    parallel_for(tokens, 1, threads, [&](i64 t) {
        for (i64 h = 0; h < heads; h++) {
            float y[DIM];
            from.load(t, h, 0, DIM, y);
            rotate<true>(y + NOPE, table(positions[t * ps]));
            for (int g = 0; g < GROUPS; g++) {
                const float* x = y + g * GROUP;
                const i64 at = (t * heads + h) * GROUPS + g;
                const int exponent = exponent_e4m3(std::max(largest(x, GROUP), FLOOR_OUTPUT));
                const float inverse = power_of_two(-exponent);
                u8 code[GROUP];  // bytes may alias anything, so they are written through a local array
                for (int i = 0; i < GROUP; i++) code[i] = encode_e4m3(x[i] * inverse);
                std::memcpy(codes + at * GROUP, code, GROUP);
                if (scales) scales[at] = power_of_two(exponent);
                else bytes[at] = scale_byte(exponent);
            }
        }
    });
    return 0;
}
