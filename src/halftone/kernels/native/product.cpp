// The product of codes (uint8) with int8 or 4-bit weights, for linears and convolutions, on processors with AVX512-VNNI.
//
// A convolution is a linear whose rows are found through a table: for each tap of its window and each output pixel, where in the
// image the channels of that pixel begin, or a row of zero points beyond the edge. So nothing is copied, and padding, stride and
// dilation are the table's business.
//
// Weights are cut into panels of 64 outputs and slabs of the summed-over axis that stay in the second-level cache while all rows
// pass by. A slab of 4-bit weights is widened when its turn comes, into memory of the thread's own: what is packed stays packed.
// Sums are exact in int32. What follows is the definition's: two roundings for (sum - offset) * scale and + bias, one for each
// further sum.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "arithmetic.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HALFTONE_VNNI 1
#else
#define HALFTONE_VNNI 0
#endif

using namespace halftone;

#ifdef _OPENMP
extern "C" int omp_get_max_threads(void);  // not from a header, which not every compiler has
#endif

namespace {

constexpr int64_t kPanel = 64;  // outputs
constexpr int64_t kStep = 4;    // terms that one instruction adds up
constexpr int64_t kSlab = 512;  // steps: 128 KiB of int8
constexpr int64_t kRows = 252;  // rows that share a slab: their sums take 63 KiB
constexpr int64_t kFewest = 16;  // rows that are worth a slab
constexpr int kBlock = 6;       // rows at a time: 24 registers of sums

struct Weight {
    const uint8_t* panels;  // [outputs / 64][taps][width / 4][64][4], int8; or nibbles, see `place`
    const int8_t* zero;     // of 4-bit weights [outputs / 64][64][4]; null means int8
    const uint8_t* pad;     // [width], the input's zero point
    const int32_t* offset;  // [outputs], what the input's zero point adds to each sum
    const float* scale;     // [outputs]
    int64_t taps, width, outputs;
};

// What becomes of the sums.
struct Finish {
    const float* bias;    // [samples][outputs], or null
    int64_t bias_rows;    // rows of a sample; 0: one bias for all
    const void* added;    // [rows][outputs], of the output's dtype, or null
    void* out;            // [rows][outputs]; of codes of a gated product [rows][outputs / 2]
    int bfloat16, gated;  // the output's dtype, or codes of hidden * gelu(gate), uint8
    float factor, offset, top;
};

inline float load(const float* x) { return *x; }
inline float load(const uint16_t* x) { return widened(*x); }
inline void store(float* x, float y) { *x = y; }
inline void store(uint16_t* x, float y) { *x = narrowed(y); }

// Where the code of step `step`, output `o` of a panel and term `k` of the step lies: byte, and its shift when there are two in one.
inline int64_t place(int64_t steps, int64_t panel, int64_t step, int64_t o, int64_t k, bool nibbles, int* shift) {
    const int64_t i = o * kStep + k;  // of 256
    *shift = 0;
    if (!nibbles) return (panel * steps + step) * 256 + i;
    // Bytes 0 to 63 hold 0 to 63 low and 64 to 127 high; bytes 64 to 127 the other half.
    *shift = (i & 64) ? 4 : 0;
    return (panel * steps + step) * 128 + ((i >> 7) << 6) + (i & 63);
}

// Call work(o, c, t, byte, shift) for the codes of output o, channel c, tap t.
template <typename Work>
void each_code(int64_t outputs, int64_t width, int64_t taps, bool nibbles, Work&& work) {
    const int64_t steps = taps * width / kStep;
#pragma omp parallel for schedule(static) if (outputs * width * taps > (1 << 16))
    for (int64_t panel = 0; panel < (outputs + kPanel - 1) / kPanel; ++panel)
        for (int64_t o = panel * kPanel; o < (panel + 1) * kPanel && o < outputs; ++o)
            for (int64_t c = 0; c < width; ++c)
                for (int64_t t = 0; t < taps; ++t) {
                    int shift;
                    const int64_t byte =
                        place(steps, panel, t * (width / kStep) + c / kStep, o % kPanel, c % kStep, nibbles, &shift);
                    work(o, (o * width + c) * taps + t, byte, shift);
                }
}

#if HALFTONE_VNNI

inline float gelu(float x) {
    // erf by Abramowitz and Stegun 7.1.26, 1.5e-7 off at most.
    const float z = x * 0.70710678118654752f, a = z < 0 ? -z : z;
    const float t = 1.0f / (1.0f + 0.3275911f * a);
    const float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = series * exponential(-a * a);  // 1 - erf(a)
    return 0.5f * x * (z < 0 ? tail : 2.0f - tail);
}

// Rows r of `from` to `to`: add to (or begin) their sums. Row r of tap t is that of pixel table[t * stride + r], or the pad if that is
// negative; without a table that of pixel r.
template <int R>
inline void block(const uint8_t* base, const int32_t* table, int64_t stride, const uint8_t* pad, int64_t steps, int64_t from,
                  int64_t to, const int8_t* b, int32_t* sums, bool fresh) {
    __m512i s[R][4];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) s[r][j] = fresh ? _mm512_setzero_si512() : _mm512_loadu_si512(sums + r * kPanel + j * 16);
    int64_t tap = from / steps, at = from % steps;
    while (from < to) {
        const int64_t count = steps - at < to - from ? steps - at : to - from;
        const uint8_t* a[R];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const int64_t where = (table ? table[tap * stride + r] : r) * steps * kStep;
            a[r] = (where < 0 ? pad : base + where) + at * kStep;
        }
        for (int64_t k = 0; k < count; ++k, b += 256) {
            const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64), b2 = _mm512_loadu_si512(b + 128),
                          b3 = _mm512_loadu_si512(b + 192);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, a[r] + kStep * k, 4);
                const __m512i x = _mm512_set1_epi32(four);
                s[r][0] = _mm512_dpbusd_epi32(s[r][0], x, b0);
                s[r][1] = _mm512_dpbusd_epi32(s[r][1], x, b1);
                s[r][2] = _mm512_dpbusd_epi32(s[r][2], x, b2);
                s[r][3] = _mm512_dpbusd_epi32(s[r][3], x, b3);
            }
        }
        from += count, at = 0, ++tap;
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) _mm512_storeu_si512(sums + r * kPanel + j * 16, s[r][j]);
}

// Slab `from` to `to` of a panel as int8: where it lies, or widened into `room`.
inline const int8_t* slab(const Weight& w, int64_t panel, int64_t total, int64_t from, int64_t to, int8_t* room) {
    if (!w.zero) return reinterpret_cast<const int8_t*>(w.panels) + (panel * total + from) * 256;
    const uint8_t* source = w.panels + (panel * total + from) * 128;
    const int8_t* zero = w.zero + panel * 256;
    const __m512i z0 = _mm512_loadu_si512(zero), z1 = _mm512_loadu_si512(zero + 64), z2 = _mm512_loadu_si512(zero + 128),
                  z3 = _mm512_loadu_si512(zero + 192), low = _mm512_set1_epi8(15);
    int8_t* target = room;
    for (int64_t k = from; k < to; ++k, source += 128, target += 256) {
        const __m512i v = _mm512_loadu_si512(source), u = _mm512_loadu_si512(source + 64);
        _mm512_storeu_si512(target, _mm512_sub_epi8(_mm512_and_si512(v, low), z0));
        _mm512_storeu_si512(target + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), z1));
        _mm512_storeu_si512(target + 128, _mm512_sub_epi8(_mm512_and_si512(u, low), z2));
        _mm512_storeu_si512(target + 192, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(u, 4), low), z3));
    }
    return room;
}

// The sums of rows m0 to m1 with one panel, [m1 - m0][64].
void sum(const Weight& w, const uint8_t* codes, const int32_t* table, int64_t rows, int64_t panel, int64_t m0, int64_t m1,
         int32_t* sums, int8_t* room) {
    const int64_t steps = w.width / kStep, total = w.taps * steps, count = m1 - m0, blocks = (count + kBlock - 1) / kBlock;
    for (int64_t from = 0; from < total; from += kSlab) {
        const int64_t to = from + kSlab < total ? from + kSlab : total;
        const int8_t* b = slab(w, panel, total, from, to, room);
        for (int64_t q = 0; q < blocks; ++q) {
            const int64_t r = q * count / blocks, n = (q + 1) * count / blocks - r;
            const uint8_t* base = table ? codes : codes + (m0 + r) * w.width;
            const int32_t* rest = table ? table + m0 + r : nullptr;
            int32_t* s = sums + r * kPanel;
            switch (n) {
                case 6: block<6>(base, rest, rows, w.pad, steps, from, to, b, s, from == 0); break;
                case 5: block<5>(base, rest, rows, w.pad, steps, from, to, b, s, from == 0); break;
                case 4: block<4>(base, rest, rows, w.pad, steps, from, to, b, s, from == 0); break;
                case 3: block<3>(base, rest, rows, w.pad, steps, from, to, b, s, from == 0); break;
                case 2: block<2>(base, rest, rows, w.pad, steps, from, to, b, s, from == 0); break;
                default: block<1>(base, rest, rows, w.pad, steps, from, to, b, s, from == 0);
            }
        }
    }
}

inline void values(const Weight& w, const Finish& f, const int32_t* __restrict__ sums, int64_t m, int64_t n0, int64_t count,
                   float* __restrict__ y) {
    const int32_t* __restrict__ offset = w.offset + n0;
    const float* __restrict__ scale = w.scale + n0;
#pragma omp simd
    for (int64_t n = 0; n < count; ++n) y[n] = static_cast<float>(sums[n] - offset[n]) * scale[n];
    if (f.bias) {
        const float* __restrict__ bias = f.bias + (f.bias_rows ? m / f.bias_rows * w.outputs : 0) + n0;
#pragma omp simd
        for (int64_t n = 0; n < count; ++n) y[n] += bias[n];
    }
}

template <typename T>
void finish(const Weight& w, const Finish& f, const int32_t* sums, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    float y[kPanel];
    for (int64_t m = m0; m < m1; ++m) {
        const int64_t count = n1 - n0;
        values(w, f, sums + (m - m0) * kPanel, m, n0, count, y);
        T* __restrict__ out = static_cast<T*>(f.out) + m * w.outputs + n0;
        if (f.added) {
            // Not restricted: it may be the output itself.
            const T* added = static_cast<const T*>(f.added) + m * w.outputs + n0;
#pragma omp simd
            for (int64_t n = 0; n < count; ++n) y[n] += load(added + n);
        }
#pragma omp simd
        for (int64_t n = 0; n < count; ++n) store(out + n, y[n]);
    }
}

// Codes of hidden * gelu(gate), where the gate is the second half of the outputs.
void finish_gated(const Weight& w, const Finish& f, const int32_t* hidden, const int32_t* gate, int64_t m0, int64_t m1, int64_t n0) {
    const int64_t half = w.outputs / 2;
    const float limit = kMagic + f.top;
    float y[kPanel], g[kPanel];
    for (int64_t m = m0; m < m1; ++m) {
        values(w, f, hidden + (m - m0) * kPanel, m, n0, kPanel, y);
        values(w, f, gate + (m - m0) * kPanel, m, n0 + half, kPanel, g);
        uint8_t* __restrict__ out = static_cast<uint8_t*>(f.out) + m * half + n0;
#pragma omp simd
        for (int64_t n = 0; n < kPanel; ++n) out[n] = code(y[n] * gelu(g[n]), f.factor, f.offset, limit, 0);
    }
}

void product(const Weight& w, const Finish& f, const uint8_t* codes, const int32_t* table, int64_t rows) {
    const int64_t panels = (w.outputs + kPanel - 1) / kPanel, half = panels / 2, wide = f.gated ? half : panels;
    int64_t chunks = (rows + kRows - 1) / kRows;
#ifdef _OPENMP
    // Two items for every thread where the rows suffice: few outputs or rows are not to leave threads idle.
    const int64_t wanted = (2 * omp_get_max_threads() + wide - 1) / wide, most = (rows + kFewest - 1) / kFewest;
    chunks = std::max(chunks, std::min(wanted, most));
#endif
    const int64_t items = wide * chunks;
#pragma omp parallel if (items > 1)
    {
        // Not vectors: those would write zeros first.
        const std::unique_ptr<int32_t[]> sums(new int32_t[kRows * kPanel * (f.gated ? 2 : 1)]);
        const std::unique_ptr<int8_t[]> room(w.zero ? new int8_t[kSlab * 256] : nullptr);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < items; ++item) {
            const int64_t panel = item / chunks, chunk = item % chunks;
            const int64_t m0 = chunk * rows / chunks, m1 = (chunk + 1) * rows / chunks;
            const int64_t n0 = panel * kPanel, n1 = n0 + kPanel < w.outputs ? n0 + kPanel : w.outputs;
            sum(w, codes, table, rows, panel, m0, m1, sums.get(), room.get());
            if (f.gated) {
                int32_t* gate = sums.get() + kRows * kPanel;
                sum(w, codes, table, rows, panel + half, m0, m1, gate, room.get());
                finish_gated(w, f, sums.get(), gate, m0, m1, n0);
            } else if (f.bfloat16) {
                finish<uint16_t>(w, f, sums.get(), m0, m1, n0, n1);
            } else {
                finish<float>(w, f, sums.get(), m0, m1, n0, n1);
            }
        }
    }
}

#endif

}  // namespace

extern "C" {

// Whether this library was compiled for a processor that has the instructions.
int halftone_product_there() { return HALFTONE_VNNI; }

// Codes [outputs][width][taps] (bytes, or pairs of nibbles with each output's row padded to whole bytes) to panels, which are zero
// before; int8 panels hold code - zero. `colsum` [outputs] becomes the sum of code - zero.
void halftone_arrange(const uint8_t* codes, int halved, const int32_t* zero, uint8_t* panels, int nibbles, int32_t* colsum,
                      int64_t outputs, int64_t width, int64_t taps) {
    const int64_t count = width * taps, row = halved ? (count + 1) / 2 : count;
    std::memset(colsum, 0, outputs * sizeof *colsum);
    each_code(outputs, width, taps, nibbles, [=](int64_t o, int64_t i, int64_t byte, int shift) {
        const int64_t at = i - o * count;
        const uint8_t* from = codes + o * row;
        const uint8_t found = halved ? (from[at / 2] >> (at % 2 * 4)) & 15 : from[at];
        colsum[o] += found - zero[o];
        if (nibbles)
            panels[byte] |= static_cast<uint8_t>(found << shift);
        else
            panels[byte] = static_cast<uint8_t>(found - zero[o]);
    });
}

// And back: bytes [outputs][width][taps].
void halftone_disarrange(const uint8_t* panels, int nibbles, const int32_t* zero, uint8_t* codes, int64_t outputs, int64_t width,
                         int64_t taps) {
    each_code(outputs, width, taps, nibbles, [=](int64_t o, int64_t i, int64_t byte, int shift) {
        codes[i] = nibbles ? (panels[byte] >> shift) & 15 : static_cast<uint8_t>(panels[byte] + zero[o]);
    });
}

// `table` [taps][rows], or null for a linear.
void halftone_product(const Weight* weight, const Finish* finish, const uint8_t* codes, const int32_t* table, int64_t rows) {
#if HALFTONE_VNNI
    product(*weight, *finish, codes, table, rows);
#else
    (void)weight, (void)finish, (void)codes, (void)table, (void)rows;
#endif
}
}
