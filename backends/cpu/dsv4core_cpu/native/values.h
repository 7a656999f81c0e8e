// Rows of f32 in and out of an engine's tensors and into the bytes of a cache (`CacheLayout.encode`).
#pragma once
#include "rows.h"

namespace dsv4 {

// A tensor of rows in bf16 or f32; strides in elements.
struct Rows {
    void* data;
    i64 s0, s1;
    int f32;

    void load(i64 i, i64 j, int first, int n, float* out) const {
        const i64 at = i * s0 + j * s1 + first;
        if (f32) {
            std::memcpy(out, static_cast<const float*>(data) + at, n * sizeof(float));
            return;
        }
        const u16* from = static_cast<const u16*>(data) + at;
        for (int k = 0; k < n; k++) out[k] = from_bf16(from[k]);
    }
    void store(i64 i, i64 j, int first, int n, const float* x) const {
        const i64 at = i * s0 + j * s1 + first;
        if (f32) {
            std::memcpy(static_cast<float*>(data) + at, x, n * sizeof(float));
            return;
        }
        u16* to = static_cast<u16*>(data) + at;
        for (int k = 0; k < n; k++) to[k] = to_bf16(x[k]);
    }
    void clear(i64 i, i64 j, int n) const {
        std::memset(static_cast<char*>(data) + (i * s0 + j * s1) * (f32 ? 4 : 2), 0, size_t(n) * (f32 ? 4 : 2));
    }
    float one(i64 i, i64 j) const {
        const i64 at = i * s0 + j * s1;
        return f32 ? static_cast<const float*>(data)[at] : from_bf16(static_cast<const u16*>(data)[at]);
    }
};

template <int N> inline void round_bf16(float* x) {
    for (int i = 0; i < N; i++) x[i] = from_bf16(to_bf16(x[i]));
}

template <bool FNUZ> inline void encode_ds_mla(const float* x, u8* front, u8* tail) {
    for (int b = 0; b < NOPE / BLOCK; b++) {
        float v[BLOCK];
        for (int i = 0; i < BLOCK; i++) v[i] = from_bf16(finite_bf16(x[b * BLOCK + i]));
        const int exponent = exponent_e4m3(std::max(largest(v, BLOCK), FLOOR_E4M3)) + (FNUZ ? 1 : 0);
        const float inverse = power_of_two(-exponent);
        u8 codes[BLOCK];
        for (int i = 0; i < BLOCK; i++) codes[i] = FNUZ ? encode_fnuz(v[i] * inverse) : encode_e4m3(v[i] * inverse);
        std::memcpy(front + b * BLOCK, codes, BLOCK);
        tail[b] = scale_byte(exponent);
    }
    u16 rope[DIM - NOPE];
    for (int i = 0; i < DIM - NOPE; i++) rope[i] = finite_bf16(x[NOPE + i]);
    std::memcpy(front + NOPE, rope, sizeof rope);
    tail[NOPE / BLOCK] = 0;
}

// 512 values of a main row.
inline void encode_main(int layout, const float* x, u8* front, u8* tail) {
    switch (layout) {
        case FP8_DS_MLA: return encode_ds_mla<false>(x, front, tail);
        case FP8_DS_MLA_FNUZ: return encode_ds_mla<true>(x, front, tail);
        case BF16_ROW: {
            u16 row[DIM];
            for (int i = 0; i < DIM; i++) row[i] = finite_bf16(x[i]);
            std::memcpy(front, row, sizeof row);
            return;
        }
        case FP8_ROW: {
            u8 row[DIM];
            for (int i = 0; i < DIM; i++) row[i] = encode_e4m3(finite_f32(x[i]));
            std::memcpy(front, row, sizeof row);
            return;
        }
        default:
            float row[DIM];
            for (int i = 0; i < DIM; i++) row[i] = finite_f32(x[i]);
            std::memcpy(front, row, sizeof row);
    }
}

// max(amax, 1e-4) / 448, the scale that is no power of two.
inline float plain_scale(const float* x) { return std::max(largest(x, 128), FLOOR_E4M3) / 448.0f; }

// e2m1 pairs and scale bytes of 128 values.
inline void encode_mxfp4(const float* x, u8* codes, u8* scales) {
    for (int b = 0; b < 4; b++) {
        const float* v = x + 32 * b;
        const u8 byte = scale_byte(exponent_e2m1(std::max(largest(v, 32), floor_e2m1())));
        const float inverse = power_of_two(-byte_exponent(byte));
        u8 nibble[32];
        for (int i = 0; i < 32; i++) nibble[i] = encode_e2m1(v[i] * inverse);
        u8 packed[16];
        for (int i = 0; i < 16; i++) packed[i] = u8(nibble[2 * i] | nibble[2 * i + 1] << 4);
        std::memcpy(codes + 16 * b, packed, 16);
        scales[b] = byte;
    }
}

// 128 values of an index row.
inline void encode_index(int layout, const float* x, u8* front, u8* tail) {
    if (layout == INDEX_F32) {
        float row[128];
        for (int i = 0; i < 128; i++) row[i] = finite_f32(x[i]);
        std::memcpy(front, row, sizeof row);
        return;
    }
    float v[128];
    for (int i = 0; i < 128; i++) v[i] = from_bf16(finite_bf16(x[i]));
    if (layout == INDEX_MXFP4) return encode_mxfp4(v, front, tail);
    u8 codes[128];
    if (layout == INDEX_FP8_HADAMARD_F32) {
        const float scale = plain_scale(v);
        for (int i = 0; i < 128; i++) codes[i] = encode_e4m3(v[i] / scale);
        std::memcpy(tail, &scale, 4);
    } else {
        const int exponent = exponent_e4m3(std::max(largest(v, 128), FLOOR_E4M3));
        const float inverse = power_of_two(-exponent), scale = power_of_two(exponent);
        for (int i = 0; i < 128; i++) codes[i] = encode_e4m3(v[i] * inverse);
        if (layout == INDEX_FP8)
            std::memcpy(tail, &scale, 4);
        else
            std::memset(tail, scale_byte(exponent), 4);
    }
    std::memcpy(front, codes, sizeof codes);
}

}  // namespace dsv4
