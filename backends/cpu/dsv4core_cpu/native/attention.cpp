// `sparse_decode` and `sparse_prefill`: a prefill workspace is a cache of plain rows, one to a page.
#include "attention_amx.h"
#include "attention_f32.h"

using namespace dsv4;

DSV4_API void dsv4_attend(const void* q, i64 q0, i64 q1, void* out, i64 o0, i64 o1, float* lse, const float* sink,
                          i64 sink_stride, i64 tokens, i64 heads, float scale, int f32, int threads,
                          void* a, i64 a_stride, i64 a_pages, i64 a_rows, int a_layout, const i32* a_slots, i64 a_s0,
                          i64 a_s1, i64 a_width, const i32* a_lens, i64 a_lens_stride,
                          void* b, i64 b_stride, i64 b_pages, i64 b_rows, int b_layout, const i32* b_slots, i64 b_s0,
                          i64 b_s1, i64 b_width, const i32* b_lens, i64 b_lens_stride) {
    Call call{{static_cast<const u16*>(q), q0, q1}, {static_cast<u16*>(out), o0, o1}, f32 != 0, lse, heads, sink,
              sink_stride, tokens, heads, scale, {}, b ? 2 : 1};
    call.source[0] = {make_pages(a, a_stride, a_pages, a_rows, a_layout), {a_slots, a_s0, a_s1}, a_lens,
                      a_lens_stride, a_width};
    if (b)
        call.source[1] = {make_pages(b, b_stride, b_pages, b_rows, b_layout), {b_slots, b_s0, b_s1}, b_lens,
                          b_lens_stride, b_width};
    if (f32 || a_layout == F32_ROW || (b && b_layout == F32_ROW)) return attend<F32>(call, threads);
#if DSV4_AMX
    if (amx_allowed()) return attend<Amx>(call, threads);
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
    attend<Bf16>(call, threads);
#else
    attend<F32>(call, threads);
#endif
}
