// Whole pages of one layout as pages of another. A kernel does a row and says whether its bytes are usual; the
// chunks of pages that hold a row which is not are reported, and `transcode` does them over in torch. So only
// usual bytes have to come out right here: everything that is refused, and its message, is the core's.
#include "convert.h"

using namespace dsv4;

namespace {

constexpr i64 UNIT = 128 << 10;  // bytes of source and result that a thread takes at once
constexpr int ROOM = 2 << 10;    // of a run of rows on its way there: short, so that reads and writes alternate
enum Found { ODD, LIVE, ZERO };  // ZERO: every byte of the record is 0

// -- rows into words of bf16 --

template <bool FNUZ> Found load_mla(const u8* front, const u8* tail, u16* out) {
    bool usual = true;
    for (int b = 0; b < NOPE / BLOCK; b++) usual &= usual_scale(tail[b]);
    if (!usual) {
        if (!all_zero(front, 576) || !all_zero(tail, 8)) return ODD;
        std::memset(out, 0, 2 * DIM);
        return ZERO;
    }
    for (int b = 0; b < NOPE / BLOCK; b++)
        usual &= decode_codes<BLOCK, FNUZ>(front + b * BLOCK, tail[b] - 127, out + b * BLOCK);
    std::memcpy(out + NOPE, front + NOPE, 2 * (DIM - NOPE));
    return usual && finite_words<DIM - NOPE>(out + NOPE) ? LIVE : ODD;
}

Found zero_index(const u8* front, int n, const u8* tail, u16* out) {
    if (!all_zero(front, n) || !all_zero(tail, 4)) return ODD;
    std::memset(out, 0, 2 * INDEX);
    return ZERO;
}

Found load_mxfp4(const u8* front, const u8* tail, u16* out) {
    bool usual = true;
    for (int b = 0; b < INDEX / MX; b++) {
        u64 pair[2];
        std::memcpy(pair, front + 16 * b, 16);
        const bool live = ((pair[0] | pair[1]) & 0x7777777777777777ull) != 0;
        usual &= !live || (tail[b] >= 2 && tail[b] <= 250);
        decode_pairs(front + 16 * b, byte_exponent(tail[b]), out + MX * b);
    }
    if (all_zero(tail, 4)) return zero_index(front, 64, tail, out);
    return usual ? LIVE : ODD;
}

// `turn`: rotated on the way, which only index_f32 can be.
template <int LAYOUT> Found load(const u8* front, const u8* tail, u16* out, bool turn = false) {
    if constexpr (LAYOUT == FP8_DS_MLA || LAYOUT == FP8_DS_MLA_FNUZ) {
        return load_mla<LAYOUT == FP8_DS_MLA_FNUZ>(front, tail, out);
    } else if constexpr (LAYOUT == FP8_ROW) {
        return decode_codes<DIM, false>(front, 0, out) ? LIVE : ODD;
    } else if constexpr (LAYOUT == BF16_ROW) {
        std::memcpy(out, front, 2 * DIM);
        return finite_words<DIM>(out) ? LIVE : ODD;
    } else if constexpr (LAYOUT == F32_ROW) {
        return narrow<DIM>(reinterpret_cast<const float*>(front), out) ? LIVE : ODD;
    } else if constexpr (LAYOUT == INDEX_F32) {
        const bool usual = narrow<INDEX>(reinterpret_cast<const float*>(front), out);
        if (zero_words<INDEX>(out) && all_zero(front, 4 * INDEX)) return ZERO;
        return usual && (!turn || rotate_words(out)) ? LIVE : ODD;
    } else if constexpr (LAYOUT == INDEX_MXFP4) {
        return load_mxfp4(front, tail, out);
    } else {
        u32 word;
        std::memcpy(&word, tail, 4);
        const int byte = LAYOUT == INDEX_FP8 ? int(word >> 23) : tail[0];  // the sign would make it too large
        if (!usual_scale(byte) || (LAYOUT == INDEX_FP8 && (word & 0x7fffff)))
            return zero_index(front, INDEX, tail, out);
        return decode_codes<INDEX, false>(front, byte - 127, out) ? LIVE : ODD;
    }
}

// -- words of bf16 into rows --

template <bool FNUZ> void store_mla(const u16* v, u8* front, u8* tail) {
    const bool live = encode_blocks<FNUZ>(v, front, tail);
    std::memcpy(front + NOPE, v + NOPE, 2 * (DIM - NOPE));
    if (!live && zero_words<DIM>(v)) std::memset(tail, 0, 8);
}

template <bool EXACT> bool store_mxfp4(const u16* v, u8* front, u8* tail) {
    bool usual = true;
    for (int b = 0; b < INDEX / MX; b++) {
        const u16 top = amax<MX>(v + MX * b);
        const int exponent = (top >> 7) - 129 + ((top & 0x7f) > 0x40);
        usual &= !top || exponent >= -96;
        usual &= encode_pairs<EXACT>(v + MX * b, std::max(exponent, -96), front + 16 * b);
        tail[b] = top ? scale_byte(exponent) : 1;
    }
    return usual;
}

// -> whether the words were usual and, with EXACT, whether all of them came through.
template <int LAYOUT, bool EXACT> bool store(const u16* v, u8* front, u8* tail) {
    if constexpr (LAYOUT == FP8_DS_MLA || LAYOUT == FP8_DS_MLA_FNUZ) {
        store_mla<LAYOUT == FP8_DS_MLA_FNUZ>(v, front, tail);
    } else if constexpr (LAYOUT == BF16_ROW) {
        std::memcpy(front, v, 2 * DIM);
    } else if constexpr (LAYOUT == FP8_ROW) {
        return encode_codes<DIM, true, EXACT>(v, 0, front);
    } else if constexpr (LAYOUT == F32_ROW) {
        widen<DIM>(v, reinterpret_cast<float*>(front));
    } else if constexpr (LAYOUT == INDEX_F32) {
        widen<INDEX>(v, reinterpret_cast<float*>(front));
    } else if constexpr (LAYOUT == INDEX_MXFP4) {
        return store_mxfp4<EXACT>(v, front, tail);
    } else if constexpr (LAYOUT == INDEX_FP8_HADAMARD_F32) {
        const float scale = std::max(from_bf16(amax<INDEX>(v)), FLOOR_E4M3) / 448.0f;
        encode_quotients(v, scale, front);
        std::memcpy(tail, &scale, 4);
    } else {
        const int exponent = exponent_of(amax<INDEX>(v));
        const u32 word = u32(exponent + 127) * (LAYOUT == INDEX_FP8 ? 1u << 23 : 0x01010101u);
        std::memcpy(tail, &word, 4);
        return encode_codes<INDEX, false, EXACT>(v, exponent, front);
    }
    return true;
}

// -- one row --

template <int FROM, int TO> struct Through {
    static constexpr bool PLAIN_FROM = FROM == BF16_ROW || FROM == F32_ROW || FROM == INDEX_F32;
    static constexpr bool PLAIN_TO = TO == BF16_ROW || TO == F32_ROW || TO == INDEX_F32;
    // What was quantised has to fit where it goes; from fp8_row it always does.
    static constexpr bool CHECKED = !PLAIN_FROM && !PLAIN_TO && FROM != FP8_ROW;
    static constexpr int WIDTH = FROM < INDEX_FP8 ? DIM : INDEX;
    bool turn;

    bool operator()(const u8* front, const u8* tail, u8* to, u8* to_tail) const {
        alignas(64) u16 v[WIDTH];
        // Words are made in place where they lie on even addresses.
        const bool there = TO == BF16_ROW && reinterpret_cast<uintptr_t>(to) % 2 == 0;
        u16* words = there ? reinterpret_cast<u16*>(to) : v;
        const Found found = load<FROM>(front, tail, words, turn);
        if (found == ODD) return false;
        if constexpr (WIDTH == INDEX && TO != INDEX_F32) {
            if (found == ZERO) {
                std::memset(to, 0, TO == INDEX_MXFP4 ? 64 : 128);
                std::memset(to_tail, 0, 4);
                return true;
            }
        }
        return there || store<TO, CHECKED>(v, to, to_tail);
    }
};

// f32_row to fp8_row: the one pair that is not rounded to bf16 on the way.
struct Direct {
    bool operator()(const u8* front, const u8*, u8* to, u8*) const {
        return encode_floats<DIM>(reinterpret_cast<const float*>(front), to);
    }
};

// Between the two dialects of fp8_ds_mla: codes stay, but for -0, and the scale byte moves by one.
template <bool TO_FNUZ> struct Relabel {
    bool operator()(const u8* front, const u8* tail, u8* to, u8* to_tail) const {
        bool usual = true;
        for (int b = 0; b < NOPE / BLOCK; b++) usual &= tail[b] >= 2 && tail[b] <= 253;
        const bool zero = !usual && all_zero(tail, 8) && all_zero(front, 576);
        if (!usual && !zero) return false;
        for (int b = 0; b < NOPE / BLOCK; b++) to_tail[b] = zero ? 0 : u8(tail[b] + (TO_FNUZ ? 1 : -1));
        to_tail[NOPE / BLOCK] = 0;
        u8 bad = 0;
        for (int i = 0; i < NOPE; i++) {
            const u8 c = front[i];
            bad |= u8((c & 0x7f) == 0x7f) | u8(!TO_FNUZ && c == 0x80);
            to[i] = TO_FNUZ && c == 0x80 ? 0 : c;
        }
        std::memcpy(to + NOPE, front + NOPE, 2 * (DIM - NOPE));
        return !bad;
    }
};

// Between the two forms of index_fp8: the exponent as an f32 or as four bytes.
template <bool TO_BYTES> struct Rescale {
    bool operator()(const u8* front, const u8* tail, u8* to, u8* to_tail) const {
        u32 word;
        std::memcpy(&word, tail, 4);
        const u32 byte = TO_BYTES ? word >> 23 : tail[0];
        const bool usual = byte >= 1 && byte <= 254 && !(TO_BYTES && (word & 0x7fffff));
        if (!usual && (word || !all_zero(front, INDEX))) return false;
        const u32 made = TO_BYTES ? byte * 0x01010101u : byte << 23;
        std::memcpy(to_tail, &made, 4);
        std::memcpy(to, front, INDEX);
        return true;
    }
};

// Between the two rotated forms, whose values are no bf16 on one side; ordinary pages never fit.
bool times_scale(const u8* codes, const u8* tail, float* out) {
    const CodeTable& table = code_table(false);
    float scale;
    std::memcpy(&scale, tail, 4);
    u32 bad = 0;
    for (int i = 0; i < INDEX; i++) {
        out[i] = table.f32[codes[i]] * scale;
        bad |= (bits(out[i]) & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}
bool same_numbers(const float* a, const u16* b) {
    u32 bad = 0;
    for (int i = 0; i < INDEX; i++) bad |= a[i] != from_bf16(b[i]);
    return !bad;
}
struct ToPairs {
    bool operator()(const u8* front, const u8* tail, u8* to, u8* to_tail) const {
        alignas(64) float x[INDEX];
        alignas(64) u16 v[INDEX], back[INDEX];
        if (all_zero(tail, 4) && all_zero(front, INDEX)) {
            std::memset(to, 0, 64);
            std::memset(to_tail, 0, 4);
            return true;
        }
        return times_scale(front, tail, x) && narrow<INDEX>(x, v) && store_mxfp4<false>(v, to, to_tail) &&
               load_mxfp4(to, to_tail, back) != ODD && same_numbers(x, back);
    }
};
struct FromPairs {
    bool operator()(const u8* front, const u8* tail, u8* to, u8* to_tail) const {
        alignas(64) float x[INDEX];
        alignas(64) u16 v[INDEX];
        const Found found = load_mxfp4(front, tail, v);
        if (found == ZERO) {
            std::memset(to, 0, INDEX);
            std::memset(to_tail, 0, 4);
        }
        return found == ZERO || (found == LIVE && store<INDEX_FP8_HADAMARD_F32, false>(v, to, to_tail) &&
                                 times_scale(to, to_tail, x) && same_numbers(x, v));
    }
};

#if DSV4_WIDE
// The same as `Through`, on codes.
template <bool FNUZ> struct Rescaled {
    bool operator()(const u8* front, const u8*, u8* to, u8* to_tail) const {
        bool usual = true;
        for (int b = 0; b < NOPE / BLOCK; b++) {
            const int byte = rescale_block<FNUZ>(front + b * BLOCK, to + b * BLOCK);
            usual &= byte != 0;
            to_tail[b] = u8(byte + FNUZ);
        }
        to_tail[NOPE / BLOCK] = 0;
        usual &= decode_codes<DIM - NOPE, false>(front + NOPE, 0, reinterpret_cast<u16*>(to + NOPE));
        if (all_zero(front, DIM)) std::memset(to_tail, 0, 8);
        return usual;
    }
};
template <bool BYTES> struct Joined {
    bool operator()(const u8* front, const u8* tail, u8* to, u8* to_tail) const {
        const int byte = join_pairs(front, tail, to);
        const u32 word = u32(byte) * (BYTES ? 0x01010101u : 1u << 23);
        std::memcpy(to_tail, &word, 4);
        if (byte && !all_zero(tail, 4)) return true;
        return Through<INDEX_MXFP4, BYTES ? INDEX_FP8_UE8M0X4 : INDEX_FP8>{}(front, tail, to, to_tail);
    }
};
#else
template <bool FNUZ> using Rescaled = Through<FP8_ROW, FNUZ ? FP8_DS_MLA_FNUZ : FP8_DS_MLA>;
template <bool BYTES> using Joined = Through<INDEX_MXFP4, BYTES ? INDEX_FP8_UE8M0X4 : INDEX_FP8>;
#endif

// -- all rows --

// Rows in runs that are contiguous on both sides; `left` has a byte per `step` pages of the source.
template <class Row> int convert(const Pages& a, const Pages& b, i64 step, u8* left, int threads, const Row& row) {
    const i64 slots = a.slots(), bytes = a.row_bytes + a.tail_bytes + b.row_bytes + b.tail_bytes;
    const bool far = slots * (b.row_bytes + b.tail_bytes) >= FAR;
    const i64 unit = std::max<i64>(1, UNIT / bytes), longest = ROOM / b.row_bytes;
    parallel_for((slots + unit - 1) / unit, 1, threads, [&](i64 u) {
        alignas(64) u8 room[ROOM];
        const i64 end = std::min(slots, (u + 1) * unit);
        for (i64 slot = u * unit, n = 0; slot < end; slot += n) {
            n = std::min({end - slot, a.rows - slot % a.rows, b.rows - slot % b.rows, longest});
            const u8 *front = a.front(slot), *tail = a.tail(slot);
            u8 *to = b.front(slot), *to_tail = b.tail(slot), *made = far ? room : to;
            bool usual = true;
            for (i64 i = 0; i < n; i++)
                usual &= row(front + i * a.row_bytes, tail + i * a.tail_bytes, made + i * b.row_bytes,
                             to_tail + i * b.tail_bytes);
            if (far) stream(to, room, n * b.row_bytes);
            if (!usual) __atomic_store_n(left + slot / a.rows / step, u8(1), __ATOMIC_RELAXED);
        }
        if (far) stream_end();
    });
    return 0;
}

void move(u8* to, const u8* from, size_t n, bool far) { far ? stream(to, from, n) : (void)std::memcpy(to, from, n); }

// `count` lines of `width` bytes.
void copy_lines(u8* to, i64 to_stride, const u8* from, i64 stride, i64 count, i64 width, int threads) {
    if (stride == width && to_stride == width) width *= count, count = 1;
    const bool far = count * width >= FAR;
    const i64 total = count * width;
    parallel_for((total + UNIT - 1) / UNIT, 1, threads, [&](i64 u) {
        const i64 end = std::min(total, (u + 1) * UNIT);
        for (i64 at = u * UNIT, n = 0; at < end; at += n) {
            const i64 line = at / width, column = at % width;
            n = std::min(end - at, width - column);
            move(to + line * to_stride + column, from + line * stride + column, n, far);
        }
        if (far) stream_end();
    });
}

void copy_rows(const Pages& a, const Pages& b, int threads) {
    const i64 slots = a.slots(), unit = std::max<i64>(1, UNIT / (a.row_bytes + a.tail_bytes));
    const bool far = slots * (a.row_bytes + a.tail_bytes) >= FAR;
    parallel_for((slots + unit - 1) / unit, 1, threads, [&](i64 u) {
        const i64 end = std::min(slots, (u + 1) * unit);
        for (i64 slot = u * unit, n = 0; slot < end; slot += n) {
            n = std::min({end - slot, a.rows - slot % a.rows, b.rows - slot % b.rows});
            move(b.front(slot), a.front(slot), n * a.row_bytes, far);
            if (a.tail_bytes) std::memcpy(b.tail(slot), a.tail(slot), n * a.tail_bytes);
        }
        if (far) stream_end();
    });
}

}  // namespace

// Records of any layout, unchanged, into pages of another size.
DSV4_API void dsv4_copy_pages(void* from, i64 stride, i64 count, i64 rows, void* to, i64 to_stride, i64 to_rows,
                              int row_bytes, int tail_bytes, int threads) {
    u8 *const source = static_cast<u8*>(from), *const target = static_cast<u8*>(to);
    if (rows == to_rows)
        return copy_lines(target, to_stride, source, stride, count, rows * (row_bytes + tail_bytes), threads);
    const i64 made = (count * rows + to_rows - 1) / to_rows;
    copy_rows({source, stride, count, rows, 0, row_bytes, tail_bytes},
              {target, to_stride, made, to_rows, 0, row_bytes, tail_bytes}, threads);
}

// -> 1 where the pair is not known, and then nothing is done.
DSV4_API int dsv4_transcode(void* from, i64 stride, i64 count, i64 rows, int layout, void* to, i64 to_stride,
                            i64 to_count, i64 to_rows, int to_layout, int turn, i64 step, u8* left, int threads) {
    const Pages a = make_pages(from, stride, count, rows, layout);
    const Pages b = make_pages(to, to_stride, to_count, to_rows, to_layout);
    const auto go = [&](const auto& row) { return convert(a, b, step, left, threads, row); };
#define PAIR(FROM, TO) case FROM * 16 + TO: return go(Through<FROM, TO>{turn != 0})
    switch (layout * 16 + to_layout) {
        PAIR(FP8_DS_MLA, BF16_ROW);
        PAIR(FP8_DS_MLA, FP8_ROW);
        PAIR(FP8_DS_MLA, F32_ROW);
        PAIR(FP8_DS_MLA_FNUZ, BF16_ROW);
        PAIR(FP8_DS_MLA_FNUZ, FP8_ROW);
        PAIR(FP8_DS_MLA_FNUZ, F32_ROW);
        PAIR(BF16_ROW, FP8_DS_MLA);
        PAIR(BF16_ROW, FP8_DS_MLA_FNUZ);
        PAIR(BF16_ROW, FP8_ROW);
        PAIR(BF16_ROW, F32_ROW);
        PAIR(FP8_ROW, BF16_ROW);
        PAIR(FP8_ROW, F32_ROW);
        PAIR(F32_ROW, FP8_DS_MLA);
        PAIR(F32_ROW, FP8_DS_MLA_FNUZ);
        PAIR(F32_ROW, BF16_ROW);
        PAIR(INDEX_FP8, INDEX_MXFP4);
        PAIR(INDEX_FP8, INDEX_F32);
        PAIR(INDEX_FP8_UE8M0X4, INDEX_MXFP4);
        PAIR(INDEX_FP8_UE8M0X4, INDEX_F32);
        PAIR(INDEX_MXFP4, INDEX_F32);
        PAIR(INDEX_F32, INDEX_FP8);
        PAIR(INDEX_F32, INDEX_FP8_UE8M0X4);
        PAIR(INDEX_F32, INDEX_FP8_HADAMARD_F32);
        PAIR(INDEX_F32, INDEX_MXFP4);
        case F32_ROW * 16 + FP8_ROW: return go(Direct{});
        case FP8_ROW * 16 + FP8_DS_MLA: return go(Rescaled<false>{});
        case FP8_ROW * 16 + FP8_DS_MLA_FNUZ: return go(Rescaled<true>{});
        case INDEX_MXFP4 * 16 + INDEX_FP8: return go(Joined<false>{});
        case INDEX_MXFP4 * 16 + INDEX_FP8_UE8M0X4: return go(Joined<true>{});
        case FP8_DS_MLA * 16 + FP8_DS_MLA_FNUZ: return go(Relabel<true>{});
        case FP8_DS_MLA_FNUZ * 16 + FP8_DS_MLA: return go(Relabel<false>{});
        case INDEX_FP8 * 16 + INDEX_FP8_UE8M0X4: return go(Rescale<true>{});
        case INDEX_FP8_UE8M0X4 * 16 + INDEX_FP8: return go(Rescale<false>{});
        case INDEX_FP8_HADAMARD_F32 * 16 + INDEX_MXFP4: return go(ToPairs{});
        case INDEX_MXFP4 * 16 + INDEX_FP8_HADAMARD_F32: return go(FromPairs{});
        default: return 1;
    }
#undef PAIR
}
