// `linear` with NVFP4 weights: an e2m1 code times its e4m3 scale is exact in bf16 and multiplied as such; the factor
// of the matrix multiplies the sums. A number depends on its own row and output alone.
#include <type_traits>

#include "dots.h"
#include "values.h"

using namespace dsv4;

namespace {

constexpr i64 PACK = 16;      // outputs whose codes lie next to each other, and inputs that share a scale
constexpr i64 TOKENS = 256;   // rows whose sums are held at once
constexpr int VECTORS = LANES < 16 ? PACK / LANES : PairMath::NV;
constexpr i64 WIDTH = VECTORS * LANES;

using Word = PairMath::Word;

struct Matrix {
    const u8* codes;    // [outputs / 16][inputs / 2][16], two codes a byte
    const u16* scales;  // [outputs / 16][inputs / 16][16] in bf16
    i64 outputs, inputs;
};

// 16 small whole numbers, widened.
template <class T> inline I16 whole(const T* from) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 1) return (I16)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
    else return (I16)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#else
    I16 to;
    for (int i = 0; i < 16; i++) to[i] = from[i];
    return to;
#endif
}

// Values of 16 codes, whatever lies above their four bits.
inline F16 e2m1_values(I16 code) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    return (F16)_mm512_permutexvar_ps((__m512i)code, table);
#else
    const I16 magnitude = code & 7, small = magnitude < 2;  // 0 and 0.5 have no leading one
    const I16 bits = (small & magnitude * 0x3f000000) | (~small & ((magnitude << 22) + 0x3f000000));
    return (F16)(bits | (code & 8) << 28);
#endif
}

// Columns [output, output + WIDTH) of DOT inputs; zeros where there are no outputs.
void widen(const Matrix& m, i64 output, i64 input, Word* panel) {
    for (i64 o = 0; o < WIDTH; o += PACK) {
        if (output + o >= m.outputs) {
            for (int k = 0; k < PairMath::WORDS; k++) std::memset(panel + k * WIDTH + o, 0, PACK * sizeof(Word));
            continue;
        }
        const i64 pack = (output + o) / PACK;
        const u8* codes = m.codes + (pack * m.inputs + input) / 2 * PACK;
        const u16* scales = m.scales + (pack * m.inputs + input) / 16 * PACK;
        for (int group = 0; group < DOT / 16; group++, scales += PACK) {
            const F16 scale = (F16)(whole(scales) << 16);
            for (int pair = group * 8; pair < group * 8 + 8; pair++, codes += PACK) {
                const I16 code = whole(codes);
                const F16 even = e2m1_values(code) * scale, odd = e2m1_values(code >> 4) * scale;
                if constexpr (std::is_same_v<Word, float>) {
                    std::memcpy(panel + 2 * pair * WIDTH + o, &even, sizeof even);
                    std::memcpy(panel + (2 * pair + 1) * WIDTH + o, &odd, sizeof odd);
                } else {
                    const I16 both = ((I16)even >> 16 & 0xffff) | ((I16)odd & ~0xffff);
                    std::memcpy(panel + pair * WIDTH + o, &both, sizeof both);
                }
            }
        }
    }
}

template <int R> void multiply(const Word* rows, const Word* panel, float* sums) {
    Vec sum[R][VECTORS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = load(sums + r * WIDTH + v * LANES);
    for (int k = 0; k < PairMath::WORDS; k++) {
        PairMath::Column column[VECTORS];
        for (int v = 0; v < VECTORS; v++) column[v] = PairMath::column(panel + k * WIDTH + v * LANES);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++)
                sum[r][v] = PairMath::step(sum[r][v], rows[r * PairMath::WORDS + k], column[v]);
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(sums + r * WIDTH + v * LANES, sum[r][v]);
}

void multiply(i64 count, const Word* rows, const Word* panel, float* sums) {
    switch (count) {
        case 1: return multiply<1>(rows, panel, sums);
        case 2: return multiply<2>(rows, panel, sums);
        case 3: return multiply<3>(rows, panel, sums);
        case 4: return multiply<4>(rows, panel, sums);
        case 5: return multiply<5>(rows, panel, sums);
        default: return multiply<6>(rows, panel, sums);
    }
}

}  // namespace

// Every `group` outputs, whole panels or all of them, have inputs of their own.
DSV4_API void dsv4_nvfp4_linear(const u16* x, i64 x_stride, void* out, i64 out_stride, int out_f32, const u8* codes,
                                const u16* scales, const float* factor, i64 tokens, i64 outputs, i64 inputs,
                                i64 group, int threads) {
    static thread_local Scratch memory;
    const Matrix matrix{codes, scales, outputs, inputs};
    const Rows results{out, out_stride, 1, out_f32};
    parallel_for((outputs + WIDTH - 1) / WIDTH, 1, threads, [&](i64 part) {
        const auto lay_out = [&](Cutter cut, Word*& panel, Word*& rows, float*& sums) {
            panel = cut.take<Word>(PairMath::WORDS * WIDTH);
            rows = cut.take<Word>(PairMath::ROWS * PairMath::WORDS);
            sums = cut.take<float>(std::min(tokens, TOKENS) * WIDTH);
            return cut.used();
        };
        Word *panel, *rows;
        float* sums;
        lay_out(Cutter(memory.get(lay_out(Cutter(), panel, rows, sums))), panel, rows, sums);
        const i64 first = part * WIDTH;
        const u16* own = x + first / group * inputs;
        const int live = int(std::min(WIDTH, outputs - first));
        for (i64 block = 0; block < tokens; block += TOKENS) {
            const i64 end = std::min(tokens, block + TOKENS);
            std::fill(sums, sums + (end - block) * WIDTH, 0.0f);
            for (i64 input = 0; input < inputs; input += DOT) {
                widen(matrix, first, input, panel);
                for (i64 t = block; t < end; t += PairMath::ROWS) {
                    const i64 count = std::min<i64>(PairMath::ROWS, end - t);
                    for (i64 r = 0; r < count; r++)
                        PairMath::words(own + (t + r) * x_stride + input, rows + r * PairMath::WORDS);
                    multiply(count, rows, panel, sums + (t - block) * WIDTH);
                }
            }
            for (i64 t = block; t < end; t++) {
                float* row = sums + (t - block) * WIDTH;
                for (int i = 0; i < live; i++) row[i] *= *factor;
                results.store(t, 0, int(first), live, row);
            }
        }
    });
}
