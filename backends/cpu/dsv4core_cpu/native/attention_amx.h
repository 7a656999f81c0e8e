// Matrix products of attention with AMX: tiles of 16 rows of 64 bytes. Queries and rows lie in memory as for
// AVX512-BF16; weights are turned so that a tile's row is a head.
#pragma once
#include "attention_bf16.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#include <sys/syscall.h>
#include <unistd.h>

namespace dsv4 {

// Whether the system lets this process use tiles; it has to be asked once.
inline bool amx_allowed() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return allowed;
}

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

struct Amx : Bf16 {
    static constexpr i64 KEYS = 32, ROWS = 32, PAIRS = KEYS / 2;

    // Configures this thread's tiles for as long as it works.
    struct Own : Bf16::Own {
        explicit Own(void* memory) : Bf16::Own(memory) {
            struct alignas(64) { u8 palette, start, reserved[14]; u16 bytes[16]; u8 rows[16]; } shape = {};
            shape.palette = 1;
            for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
            _tile_loadconfig(&shape);
        }
        Own(const Own&) = delete;
        ~Own() { _tile_release(); }
        static size_t bytes() { return KEYS * DIM * 2; }
    };

    struct Work : Bf16::Work {
        void cut(Cutter& c, i64 capacity, i64 padded) { Bf16::Work::cut(c, capacity + KEYS, padded); }
        static i64 rows(i64) { return KEYS; }

        // A tile of keys that is not full ends in zeros.
        void load(Own& own, const Key* keys, i64 count, i64 place, bool keep) {
            Bf16::Work::load(own, keys, count, place, keep);
            for (i64 p = 0; keep && count < KEYS && p < PANELS; p++)
                for (i64 j = (place + count + 1) / 2; j < place / 2 + PAIRS; j++)
                    std::memset(values + (p * pairs + j) * PANEL, 0, PANEL * sizeof(u32));
        }

        // Scores of rows that do not exist are written too: behind the last key there is room.
        void dots(Own& own, i64 row, i64, i64 count, i64 h, i64 padded, float* s, float scale) {
            const int nv = vectors(h, padded);
            for (int v = 0; v < nv; v += 2) {
                const TileProduct product{own.rows + row * (DIM / 2), query + h * HEADS * DIM / 2 + v * 16,
                                          DIM * 2, 16 * DIM * 2, 64, nv * 64, 16 * nv * 64, DIM / 32, count > 16, v + 1 < nv};
                float* to = s + h * HEADS + v * 16;
                product.run([] { TileProduct::clear(); }, [&] { product.store(to, padded); });
                for (i64 r = 0; r < count; r++)
                    for (i64 i = 0; i < std::min(2, nv - v); i++)
                        dsv4::store(to + r * padded + i * 16, mul(dsv4::load(to + r * padded + i * 16), all(scale)));
            }
        }

        // Blocks of 16 pairs of keys and 16 heads are turned in place, with weights of 0 behind the last key.
        void soften(const Call& call, i64 t, i64 n, i64 head, float* scores, i64 padded, float* share) {
            Bf16::Work::soften(call, t, n, head, scores, padded, share);
            for (i64 block = 0; block < (n + 1) / 2; block += PAIRS) {
                __m512i r[16];
                float* at = scores + block * padded + head;
                for (int i = 0; i < 16; i++)
                    r[i] = block + i < (n + 1) / 2 ? _mm512_loadu_si512(at + i * padded) : _mm512_setzero_si512();
                transpose16(r);
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(at + i * padded, r[i]);
            }
        }

        void weigh(const Call& call, i64 t, i64 panel, i64 head, i64 heads, i64 first, i64 count, const float* scores,
                   i64 padded, const float* share, float* sums, bool fresh, bool final) {
            alignas(64) float made[ROWS * 32];
            for (int half = 0; half < 2; half++) {
                const TileProduct product{scores + first / 2 * padded + head, values + panel * pairs * PANEL + half * 32,
                                          padded * 4, 64, PAIRS * padded * 4, PANEL * 4, PAIRS * PANEL * 4,
                                          (count + KEYS - 1) / KEYS, heads > 16, true};
                float* partial = sums + head * DIM + panel * PANEL + half * 32;
                product.run([&] { fresh ? TileProduct::clear() : product.load(partial, DIM); },
                            [&] { final ? product.store(made, 32) : product.store(partial, DIM); });
                for (i64 r = 0; final && r < heads; r++)
                    finish(call, t, head + r, panel * PANEL + half * 32, dsv4::load(made + r * 32),
                           dsv4::load(made + r * 32 + 16), share);
            }
        }
    };
};

}  // namespace dsv4
#endif
