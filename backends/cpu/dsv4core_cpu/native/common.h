// What every kernel shares: sizes, small floats, pages, and the one way to run a loop on several threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#define DSV4_API extern "C" __attribute__((visibility("default")))

namespace dsv4 {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

// Names and numbers of the layouts; `native.py` has the same list.
enum Layout : int {
    FP8_DS_MLA, FP8_DS_MLA_FNUZ, BF16_ROW, FP8_ROW, F32_ROW,
    INDEX_FP8, INDEX_FP8_UE8M0X4, INDEX_FP8_HADAMARD_F32, INDEX_MXFP4, INDEX_F32,
};

inline u32 bits(float x) { u32 b; std::memcpy(&b, &x, 4); return b; }
inline float number(u32 b) { float x; std::memcpy(&x, &b, 4); return x; }
inline float from_bf16(u16 b) { return number(u32(b) << 16); }

// Round to nearest even; NaN becomes the one quiet NaN that torch writes.
inline u16 to_bf16(float x) {
    const u32 b = bits(x);
    const u16 rounded = u16((b + 0x7fff + ((b >> 16) & 1)) >> 16);
    return (b & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

// The same for cache rows: NaN becomes 0 and infinity 2^127 (`layout/rounding.py`).
inline u16 finite_bf16(float x) {
    const u32 b = bits(x);
    const u32 rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    const u32 huge = (rounded & 0x8000) | 0x7f00;
    const u32 kept = (rounded & 0x7f80) == 0x7f80 ? huge : rounded;
    return u16((b & 0x7fffffff) > 0x7f800000 ? 0 : kept);
}

inline float finite_f32(float x) {
    const u32 b = bits(x);
    const float kept = (b & 0x7fffffff) == 0x7f800000 ? number((b & 0x80000000) | 0x7f000000) : x;
    return (b & 0x7fffffff) > 0x7f800000 ? 0.0f : kept;
}

inline float power_of_two(int k) { return number(u32(k + 127) << 23); }

// A cache of rows: `slot = page * rows + row`; the tails of a page lie behind all of its rows.
struct Pages {
    u8* base;
    i64 stride, count, rows;
    int layout, row_bytes, tail_bytes;

    i64 slots() const { return count * rows; }
    u8* front(i64 slot) const { return base + slot / rows * stride + slot % rows * row_bytes; }
    u8* tail(i64 slot) const { return base + slot / rows * stride + rows * row_bytes + slot % rows * tail_bytes; }
};

inline Pages make_pages(void* base, i64 stride, i64 count, i64 rows, int layout) {
    static const int row_bytes[] = {576, 576, 1024, 512, 2048, 128, 128, 128, 64, 512};
    static const int tail_bytes[] = {8, 8, 0, 0, 0, 4, 4, 4, 4, 0};
    return {static_cast<u8*>(base), stride, count, rows, layout, row_bytes[layout], tail_bytes[layout]};
}

// A strided matrix of an engine's own tensors.
template <class T> struct View {
    T* data;
    i64 s0, s1;
    T& operator()(i64 i, i64 j) const { return data[i * s0 + j * s1]; }
};

// Memory of one thread that is kept for the next call: fresh pages would cost more than small kernels.
class Scratch {
public:
    ~Scratch() { std::free(data_); }
    void* get(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + 4095) / 4096 * 4096;
            data_ = std::aligned_alloc(4096, size_);
            if (!data_) std::abort();
        }
        return data_;
    }

private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// Cuts one block of memory into arrays, each at a cache line.
class Cutter {
public:
    explicit Cutter(void* data = nullptr) : at_(static_cast<char*>(data)) {}
    template <class T> T* take(size_t n) {
        char* here = at_ + used_;
        used_ += (n * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(here);
    }
    size_t used() const { return used_; }

private:
    char* at_;
    size_t used_ = 0;
};

constexpr i64 FAR = 8 << 20;  // bytes: results from here on go past the caches

// Past the caches, where the result is too large to be found in them again.
inline void stream(u8* to, const u8* from, size_t n) {
#if defined(__x86_64__)
    const size_t head = std::min(n, size_t(-reinterpret_cast<uintptr_t>(to) & 63));
    std::memcpy(to, from, head);
    size_t i = head;
    for (; i + 64 <= n; i += 64) {
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#else
        __m128i x[4];
        std::memcpy(x, from + i, 64);
        for (int j = 0; j < 4; j++) _mm_stream_si128(reinterpret_cast<__m128i*>(to + i) + j, x[j]);
#endif
    }
    std::memcpy(to + i, from + i, n - i);
#else
    std::memcpy(to, from, n);
#endif
}
inline void stream_end() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// body(i) for i in [0, n), `grain` iterations at a time. What an iteration computes never depends on the
// thread that does it, so results are the same for every number of threads.
template <class F> void parallel_for(i64 n, i64 grain, int threads, F&& body) {
    const i64 parts = (n + grain - 1) / grain;
    const int team = int(std::min<i64>(parts, threads));
    if (team <= 1) {
        for (i64 i = 0; i < n; i++) body(i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (i64 part = 0; part < parts; part++)
        for (i64 i = part * grain; i < std::min(n, (part + 1) * grain); i++) body(i);
}

}  // namespace dsv4
