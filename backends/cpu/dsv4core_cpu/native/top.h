// The k best of a stream of scores: higher scores first, the lower index among equals. That order is total,
// so the result does not depend on how the stream is cut or in which order its parts arrive.
#pragma once
#include <functional>

#include "common.h"

namespace dsv4 {

class Top {
public:
    static size_t words(i64 k) { return size_t(2 * k + 64); }
    Top(u64* memory, i64 k) : keys_(memory), k_(k), capacity_(i64(words(k))) {}

    // NaN counts as -inf; adding 0 makes -0 and +0 equal.
    static u64 key(float score, i64 index) {
        const u32 b = bits(score == score ? score + 0.0f : -INFINITY);
        const u32 order = b & 0x80000000 ? ~b : b | 0x80000000;
        return u64(order) << 32 | (0xffffffffu - u32(index));
    }
    static i32 index(u64 key) { return i32(0xffffffffu - u32(key)); }

    void push(const float* scores, i64 n, i64 first) {
        constexpr i64 STEP = 32;
        for (i64 i = 0; i < n; i += STEP) {
            const i64 stop = std::min(n, i + STEP);
            if (full_) {
                int any = 0;
                for (i64 j = i; j < stop; j++) any |= scores[j] >= least_;
                if (!any) continue;
            }
            for (i64 j = i; j < stop; j++)
                if (!full_ || scores[j] >= least_) add(key(scores[j], first + j));
        }
    }
    void add(u64 key) {
        if (full_ && key <= bar_) return;
        keys_[count_++] = key;
        if (count_ == capacity_) shrink();
    }
    void merge(const Top& other) {
        for (i64 i = 0; i < other.count_; i++) add(other.keys_[i]);
    }

    // Ascending indices, -1 behind.
    void write(i32* out) {
        if (count_ > k_) shrink();
        for (i64 i = 0; i < count_; i++) out[i] = index(keys_[i]);
        std::sort(out, out + count_);
        for (i64 i = count_; i < k_; i++) out[i] = -1;
    }

private:
    void shrink() {
        std::nth_element(keys_, keys_ + (k_ - 1), keys_ + count_, std::greater<u64>());
        count_ = k_;
        bar_ = keys_[k_ - 1];
        full_ = true;
        const u32 order = u32(bar_ >> 32);
        least_ = number(order & 0x80000000 ? order & 0x7fffffff : ~order);
    }

    u64* keys_;
    i64 k_, capacity_, count_ = 0;
    u64 bar_ = 0;
    float least_ = -INFINITY;
    bool full_ = false;
};

}  // namespace dsv4
