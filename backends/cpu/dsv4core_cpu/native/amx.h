// Intel's matrix unit: permission, tiles, and products of up to 32 rows and 32 columns.
#pragma once
#include "common.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define DSV4_AMX 1
#include <sys/syscall.h>
#include <unistd.h>

namespace dsv4 {

// Whether the system lets this process use tiles; it has to be asked once.
inline bool amx_allowed() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return allowed;
}

// A thread's tiles, of 16 rows of 64 bytes each, for as long as it works with them.
struct Tiles {
    Tiles() {
        struct alignas(64) { u8 palette, start, reserved[14]; u16 bytes[16]; u8 rows[16]; } shape = {};
        shape.palette = 1;
        for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
        _tile_loadconfig(&shape);
    }
    Tiles(const Tiles&) = delete;
    ~Tiles() { _tile_release(); }
};

// 16 or 32 rows (tiles 4 and 5) times 16 or 32 columns (6 and 7): sums in tiles 0 to 3. A step takes 32 values
// of every row and 16 pairs of every column. Strides are in bytes.
struct TileProduct {
    const void *a, *b;
    i64 a_row, a_half, a_step, b_row, b_step, steps;
    bool low, right;  // whether there are second rows, second columns

    template <class Start, class End> void run(Start&& start, End&& end) const {
        start();
        const char *x = static_cast<const char*>(a), *y = static_cast<const char*>(b);
        for (i64 k = 0; k < steps; k++, x += a_step, y += b_step) {
            _tile_loadd(4, x, a_row);
            _tile_loadd(6, y, b_row);
            _tile_dpbf16ps(0, 4, 6);
            if (right) {
                _tile_loadd(7, y + 64, b_row);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (low) {
                _tile_loadd(5, x + a_half, a_row);
                _tile_dpbf16ps(2, 5, 6);
                if (right) _tile_dpbf16ps(3, 5, 7);
            }
        }
        end();
    }

    static void clear() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    void load(const float* from, i64 stride) const {
        _tile_loadd(0, from, stride * 4);
        if (right) _tile_loadd(1, from + 16, stride * 4);
        if (low) _tile_loadd(2, from + 16 * stride, stride * 4);
        if (low && right) _tile_loadd(3, from + 16 * stride + 16, stride * 4);
    }
    void store(float* to, i64 stride) const {
        _tile_stored(0, to, stride * 4);
        if (right) _tile_stored(1, to + 16, stride * 4);
        if (low) _tile_stored(2, to + 16 * stride, stride * 4);
        if (low && right) _tile_stored(3, to + 16 * stride + 16, stride * 4);
    }
};

}  // namespace dsv4
#else
#define DSV4_AMX 0
#endif
