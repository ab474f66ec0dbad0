// Attention without score matrices in memory: softmax(q k^T * scale) v for a block of queries at a time.
//
// Queries are the lanes of a register, 16 in each: scores come out transposed, [keys][queries]. Then maxima and sums over keys are plain
// vector operations, the codes of four neighbouring keys (or the bfloat16 numbers of two) are what a dot-product instruction wants of
// a lane, and nothing is shuffled between the two products. No padding of the head's width beyond a multiple of four (or two).
//
// `codes`: all four operands are codes of 8 bits. Products are exact sums in int32. Scores (of all keys, for one block of queries:
// in the second-level cache) are made into exponentials at once, since a probability's code needs the sum of the row first.
// `bfloat16`: the usual streaming softmax; products with bfloat16 operands, sums in float32.
//
// Compiled for the processor at hand; one that lacks the instructions has `halftone_attention_missing` say so.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define HALFTONE_CODES 1
#endif
#if defined(HALFTONE_CODES) && defined(__AVX512BF16__)
#define HALFTONE_BFLOAT16 1
#endif

// Which of the two functions do not run here: 1 for that on codes, 2 for that on bfloat16.
extern "C" int halftone_attention_missing() {
    int missing = 3;
#ifdef HALFTONE_CODES
    missing &= ~1;
#endif
#ifdef HALFTONE_BFLOAT16
    missing &= ~2;
#endif
    return missing;
}

// Sizes and strides (in elements) of an attention whose tensors are views [samples, tokens, heads, width] with width dense.
struct Shape {
    int64_t samples, heads, queries, keys, width;
    int64_t q_sample, q_token, q_head, k_sample, k_token, k_head, v_sample, v_token, v_head, out_sample, out_token, out_head;
};

// code = clamp(round(x * inverse) + zero, 0, top), half to even.
struct Code {
    float inverse;
    int32_t zero, top;
};

#ifdef HALFTONE_CODES
#include <immintrin.h>

namespace {

constexpr int kLanes = 16, kBlock = 2 * kLanes;  // queries that go together
constexpr int kTile = 12;                        // keys whose scores are in registers together
constexpr int kChunk = 16 * kTile;               // keys whose probabilities are in the first-level cache together
constexpr float kMagic = 12582912.0f;            // 1.5 * 2^23: the bits of this plus a small integer are those of the sum
constexpr int32_t kMagicBits = 0x4B400000;
constexpr float kSlack = 10.0f;  // powers of two that a score may lie above the row's reference

inline int64_t rounded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Memory that a thread keeps from call to call, on a line of the cache.
class Scratch {
  public:
    uint8_t* of(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = static_cast<size_t>(rounded(static_cast<int64_t>(bytes), 4096));
            data_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_));
        }
        return data_;
    }
    ~Scratch() { std::free(data_); }

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

inline __m512 loaded(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

inline __m512 loaded(const uint16_t* x, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

inline void stored(float* to, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, x); }

// Round to nearest, half to even; NaN is kept one.
inline __m512i halved(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
    const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(near, none, _mm512_set1_epi32(0x7FC0));
}

inline void stored(uint16_t* to, __m512 x, __mmask16 mask) {
    _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(halved(x)));
}

inline __mmask16 first(int64_t n) { return n >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << n) - 1); }

// 2^x for x up to about 20, with a relative error of 3e-6 (a minimax polynomial on [-1/2, 1/2]); 2^-126 for all that is less.
inline __m512 power(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 magic = _mm512_set1_ps(kMagic), shifted = _mm512_add_ps(x, magic);
    const __m512 r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
    __m512 p = _mm512_set1_ps(9.570101858e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591786032e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402474483e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931218147e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999992614e-1f));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

template <typename T>
inline __m512i coded(const T* x, __mmask16 mask, const Code& code) {
    __m512 y = _mm512_mul_ps(loaded(x, mask), _mm512_set1_ps(code.inverse));
    y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-65536.0f)), _mm512_set1_ps(65536.0f));
    const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(code.zero));
    return _mm512_min_epi32(_mm512_max_epi32(n, _mm512_setzero_si512()), _mm512_set1_epi32(code.top));
}

// A row of `width` numbers to codes, minus `shift`; zeros up to `padded`.
template <typename T>
inline void encode(const T* x, uint8_t* out, int64_t width, int64_t padded, const Code& code, int shift) {
    std::memset(out + width / 4 * 4, 0, static_cast<size_t>(padded - width / 4 * 4));
    for (int64_t c = 0; c < width; c += kLanes) {
        const __mmask16 mask = first(width - c);
        const __m512i n = _mm512_sub_epi32(coded(x + c, mask, code), _mm512_set1_epi32(shift));
        _mm_mask_storeu_epi8(out + c, mask, _mm512_cvtepi32_epi8(n));
    }
}

inline int32_t word(const void* at) {
    int32_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// Words of 32 queries' rows, one after the other for each query, to one after the other for each word.
inline void interleave(const uint8_t* rows, int64_t words, int32_t* out) {
    for (int64_t n = 0; n < kBlock; ++n)
        for (int64_t g = 0; g < words; ++g) out[g * kBlock + n] = word(rows + 4 * (n * words + g));
}

// Words of one key's row to its place among the keys of its tile.
inline void spread(const uint8_t* row, int64_t words, int32_t* keys, int64_t j) {
    int32_t* own = keys + j / kTile * words * kTile + j % kTile;
    for (int64_t g = 0; g < words; ++g) own[g * kTile] = word(row + 4 * g);
}

// What a block of queries knows of its rows: the score that exponentials are relative to (times `unit`, in powers of two), and their sum.
struct Rows {
    __m512 reference[2], sum[2];
};

// Raises the reference of rows whose scores exceed it too far. Returns whether any was; then `faded` is what came before is to be
// multiplied with. Of scores that are all the same distance from the reference, nothing is lost by its being inexact.
inline bool raise(Rows& rows, const __m512 most[2], __m512 unit, __m512 faded[2]) {
    __mmask16 beyond[2];
    __m512 top[2];
    for (int h = 0; h < 2; ++h) {
        top[h] = _mm512_mul_ps(most[h], unit);
        const __m512 limit = _mm512_add_ps(rows.reference[h], _mm512_set1_ps(kSlack));
        beyond[h] = _mm512_cmp_ps_mask(top[h], limit, _CMP_GT_OQ);
    }
    if (__builtin_expect(!(beyond[0] | beyond[1]), 1)) return false;
    for (int h = 0; h < 2; ++h) {
        const __m512 now = _mm512_mask_mov_ps(rows.reference[h], beyond[h], top[h]);
        faded[h] = power(_mm512_sub_ps(rows.reference[h], now));
        rows.sum[h] = _mm512_mul_ps(rows.sum[h], faded[h]);
        rows.reference[h] = now;
    }
    return true;
}

// Makes the scores of a tile into exponentials, and returns whether the reference was raised. Keys from `count` on get zeros.
inline bool exponentials(__m512 (&scores)[kTile][2], int64_t count, float factor, Rows& rows, __m512 faded[2]) {
    const __m512 unit = _mm512_set1_ps(factor);
    __m512 most[2] = {scores[0][0], scores[0][1]};
    const bool whole = __builtin_expect(count == kTile, 1);
#pragma GCC unroll 12
    for (int j = 1; j < kTile; ++j)
        for (int h = 0; h < 2; ++h)
            if (whole || j < count) most[h] = _mm512_max_ps(most[h], scores[j][h]);
    const bool raised = raise(rows, most, unit, faded);
#pragma GCC unroll 12
    for (int j = 0; j < kTile; ++j)
        for (int h = 0; h < 2; ++h) {
            const __m512 e = power(_mm512_fmsub_ps(scores[j][h], unit, rows.reference[h]));
            scores[j][h] = !whole && j >= count ? _mm512_setzero_ps() : e;
        }
    return raised;
}

// ---- Codes ----

struct Codes {
    Code q, k, v, probs;
    float unit;   // of a score: the two scales, the attention's own, and log2(e)
    float scale;  // of the result: those of the probabilities and of v
};

// What differs between the products: how a register is summed up, and how a broadcast word is taken.
struct OfCodes {
    using Sum = __m512i;
    static Sum load(const void* at) { return _mm512_load_si512(at); }
    static void store(void* at, Sum sum) { _mm512_store_si512(at, sum); }
    static Sum begin(int32_t bits) { return _mm512_set1_epi32(bits); }
    static Sum add(Sum sum, __m512i left, int32_t right) { return _mm512_dpbusd_epi32(sum, left, _mm512_set1_epi32(right)); }
};

// Sums [tile][32] of products of a tile's keys and 32 queries; each key's begin with its `start`. Not made part of its callers, which
// would leave it too few registers.
template <typename Product>
__attribute__((noinline)) void multiply(const int32_t* keys, const int32_t* q, int64_t words, const int32_t* start, void* out) {
    typename Product::Sum s[kTile][2];
#pragma GCC unroll 12
    for (int j = 0; j < kTile; ++j) s[j][0] = s[j][1] = Product::begin(start[j]);
    for (int64_t g = 0; g < words; ++g, keys += kTile, q += kBlock) {
        const __m512i left = _mm512_load_si512(q), right = _mm512_load_si512(q + kLanes);
#pragma GCC unroll 12
        for (int j = 0; j < kTile; ++j) {
            s[j][0] = Product::add(s[j][0], left, keys[j]);
            s[j][1] = Product::add(s[j][1], right, keys[j]);
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < 2 * kTile; ++i) Product::store(static_cast<uint8_t*>(out) + i * 64, s[i / 2][i % 2]);
}

// A head's keys and values as they are multiplied.
struct Head {
    const int32_t* keys;   // int8 [tiles][words of 4 channels][keys of a tile]: codes minus 128
    const int32_t* start;  // [padded keys]: what a key's sums begin with, minus q's zero point times its codes' sum
    const uint8_t* values; // int8 [padded keys / 4][padded width][4]: codes minus 128
};

template <typename T>
void pack_head(const T* k, const T* v, const Shape& s, const Codes& n, int64_t words, int64_t columns, bool magic, int32_t* keys,
               int32_t* start, uint8_t* values, Scratch& memory) {
    const int64_t padded = rounded(s.keys, kTile);
    uint8_t* row = memory.of(static_cast<size_t>(4 * words));
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t j = 0; j < padded; ++j) {
        if (j < s.keys) encode(k + j * s.k_token, row, s.width, 4 * words, n.k, 128);
        else std::memset(row, 0, static_cast<size_t>(4 * words));
        __m512i sum = _mm512_setzero_si512();
        for (int64_t g = 0; g < words; g += kLanes)
            sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi32(first(words - g), row + 4 * g));
        start[j] = (magic ? kMagicBits : 0) - n.q.zero * _mm512_reduce_add_epi32(sum);
        spread(row, words, keys, j);
    }
    for (int64_t j = 0; j < padded; j += 4) {
        int32_t* out = reinterpret_cast<int32_t*>(values + j * columns);
        for (int64_t c = 0; c < columns; c += kLanes) {
            const __mmask16 mask = first(s.width - c > 0 ? s.width - c : 0), room = first(columns - c);
            __m512i all = _mm512_setzero_si512();
            for (int i = 3; i >= 0; --i) {
                __m512i one = _mm512_setzero_si512();
                if (j + i < s.keys) {
                    one = _mm512_sub_epi32(coded(v + (j + i) * s.v_token + c, mask, n.v), _mm512_set1_epi32(128));
                    one = _mm512_maskz_and_epi32(mask, one, _mm512_set1_epi32(255));
                }
                all = _mm512_or_si512(_mm512_slli_epi32(all, 8), one);
            }
            _mm512_mask_storeu_epi32(out + c, room, all);
        }
    }
}

// Scores of a tile of keys and 32 queries, made into exponentials [tile][32]; keys from `count` on get zeros.
template <bool Magic>
inline void tile_of_codes(const Head& head, const int32_t* q, int64_t words, int64_t at, int64_t count, float unit, Rows& rows,
                          float* out) {
    multiply<OfCodes>(head.keys + at * words, q, words, head.start + at, out);
    __m512 scores[kTile][2], faded[2];
#pragma GCC unroll 24
    for (int i = 0; i < 2 * kTile; ++i) {
        const __m512i sum = _mm512_load_si512(out + i * kLanes);
        scores[i / 2][i % 2] = Magic ? _mm512_castsi512_ps(sum) : _mm512_cvtepi32_ps(sum);
    }
    exponentials(scores, count, unit, rows, faded);
#pragma GCC unroll 24
    for (int i = 0; i < 2 * kTile; ++i) {
        rows.sum[i % 2] = _mm512_add_ps(rows.sum[i % 2], scores[i / 2][i % 2]);
        _mm512_store_ps(out + i * kLanes, scores[i / 2][i % 2]);
    }
}

// The codes of four keys' probabilities, in the order that a dot product takes them.
inline __m512i packed(const float* e, __m512 factor, __m512i top) {
    __m512i n[4];
    for (int i = 0; i < 4; ++i) n[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(e + i * kBlock), factor));
    // Within each quarter of a register: keys one after the other, then queries one after the other.
    const __m512i low = _mm512_min_epi16(_mm512_packs_epi32(n[0], n[1]), top);
    const __m512i high = _mm512_min_epi16(_mm512_packs_epi32(n[2], n[3]), top);
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(_mm512_packus_epi16(low, high), order);
}

// sums [columns][32] += probabilities [groups][2 registers] times values [groups][columns], `Step` columns at a time.
template <typename Product, int Step>
inline void add_values(const __m512i* probabilities, const uint8_t* values, int64_t groups, int64_t columns, void* sums) {
    for (int64_t c = 0; c < columns; c += Step) {
        typename Product::Sum s[Step][2];
        uint8_t* own = static_cast<uint8_t*>(sums) + c * 4 * kBlock;
#pragma GCC unroll 20
        for (int i = 0; i < 2 * Step; ++i) s[i / 2][i % 2] = Product::load(own + i * 64);
        const uint8_t* value = values + 4 * c;
        for (int64_t g = 0; g < groups; ++g, value += 4 * columns) {
            const __m512i left = _mm512_load_si512(probabilities + 2 * g), right = _mm512_load_si512(probabilities + 2 * g + 1);
#pragma GCC unroll 10
            for (int i = 0; i < Step; ++i) {
                s[i][0] = Product::add(s[i][0], left, word(value + 4 * i));
                s[i][1] = Product::add(s[i][1], right, word(value + 4 * i));
            }
        }
#pragma GCC unroll 20
        for (int i = 0; i < 2 * Step; ++i) Product::store(own + i * 64, s[i / 2][i % 2]);
    }
}

inline int64_t step_of(int64_t width) { return width % 10 == 0 ? 10 : 8; }

// Numbers [columns][32] to rows of the result.
template <typename T>
inline void write_rows(const float* numbers, T* out, int64_t queries, int64_t token, int64_t width) {
    const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(kBlock));
    for (int64_t n = 0; n < queries; ++n)
        for (int64_t c = 0; c < width; c += kLanes) {
            const __mmask16 mask = first(width - c);
            const __m512 row = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, rows, numbers + c * kBlock + n, 4);
            stored(out + n * token + c, row, mask);
        }
}

template <typename T, bool Magic>
void block_of_codes(const Head& head, const T* q, T* out, int64_t queries, const Shape& s, const Codes& n, int64_t words,
                    int64_t columns, Scratch& memory) {
    const int64_t tiles = rounded(s.keys, kTile) / kTile, step = step_of(s.width);
    uint8_t* place = memory.of(static_cast<size_t>(4 * tiles * kTile * kBlock + (kChunk / 4) * 128 + 4 * columns * kBlock +
                                                   8 * words * kBlock + 128 * (tiles + 1)) + 64);
    float* exponentials = reinterpret_cast<float*>(place);
    __m512i* codes = reinterpret_cast<__m512i*>(exponentials + tiles * kTile * kBlock);
    int32_t* sums = reinterpret_cast<int32_t*>(codes + 2 * (kChunk / 4));
    int32_t* packed_q = sums + columns * kBlock;
    float* references = reinterpret_cast<float*>(packed_q + words * kBlock);  // of the tiles before each rise
    uint8_t* rows_of_q = reinterpret_cast<uint8_t*>(references + 32 * (tiles + 1));
    std::memset(rows_of_q, 0, static_cast<size_t>(4 * words * kBlock));
    for (int64_t i = 0; i < queries; ++i) encode(q + i * s.q_token, rows_of_q + i * 4 * words, s.width, 4 * words, n.q, 0);
    interleave(rows_of_q, words, packed_q);

    Rows rows;
    for (int h = 0; h < 2; ++h) rows.reference[h] = _mm512_set1_ps(-1e30f), rows.sum[h] = _mm512_setzero_ps();
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t count = s.keys - t * kTile < kTile ? s.keys - t * kTile : kTile;
        tile_of_codes<Magic>(head, packed_q, words, t * kTile, count, n.unit, rows, exponentials + t * kTile * kBlock);
        for (int h = 0; h < 2; ++h) _mm512_store_ps(references + 32 * t + h * kLanes, rows.reference[h]);
    }

    std::memset(sums, 0, static_cast<size_t>(4 * columns * kBlock));
    const __m512i top = _mm512_set1_epi16(static_cast<int16_t>(n.probs.top)), ones = _mm512_set1_epi8(1);
    __m512i totals[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512 whole[2];
    for (int h = 0; h < 2; ++h) whole[h] = _mm512_div_ps(_mm512_set1_ps(n.probs.inverse), rows.sum[h]);
    for (int64_t from = 0; from < tiles; from += kChunk / kTile) {
        const int64_t to = from + kChunk / kTile < tiles ? from + kChunk / kTile : tiles;
        __m512i* next = codes;
        for (int64_t t = from; t < to; ++t) {
            __m512 factor[2];
            for (int h = 0; h < 2; ++h) {
                const __m512 then = _mm512_load_ps(references + 32 * t + h * kLanes);
                factor[h] = whole[h];
                if (__builtin_expect(_mm512_cmp_ps_mask(then, rows.reference[h], _CMP_NEQ_OQ), 0))
                    factor[h] = _mm512_mul_ps(factor[h], power(_mm512_sub_ps(then, rows.reference[h])));
            }
            const float* e = exponentials + t * kTile * kBlock;
            for (int j = 0; j < kTile; j += 4)
                for (int h = 0; h < 2; ++h, ++next) {
                    *next = packed(e + j * kBlock + h * kLanes, factor[h], top);
                    totals[h] = _mm512_dpbusd_epi32(totals[h], *next, ones);
                }
        }
        const uint8_t* values = head.values + from * kTile * columns;
        const int64_t groups = (to - from) * (kTile / 4);
        if (step == 10) add_values<OfCodes, 10>(codes, values, groups, columns, sums);
        else add_values<OfCodes, 8>(codes, values, groups, columns, sums);
    }
    float* numbers = reinterpret_cast<float*>(sums);
    for (int64_t c = 0; c < columns; ++c)
        for (int h = 0; h < 2; ++h) {
            int32_t* at = sums + c * kBlock + h * kLanes;
            const __m512i more = _mm512_mullo_epi32(totals[h], _mm512_set1_epi32(128 - n.v.zero));
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_load_si512(at), more));
            _mm512_store_ps(numbers + c * kBlock + h * kLanes, _mm512_mul_ps(sum, _mm512_set1_ps(n.scale)));
        }
    write_rows(numbers, out, queries, s.out_token, s.width);
}

// memory: as many bytes as `halftone_attention_bytes` says, on a line of the cache.
template <typename T>
void attend_codes(const T* q, const T* k, const T* v, T* out, const Shape& s, const Codes& n, uint8_t* memory) {
    const int64_t words = rounded(s.width, 4) / 4, columns = rounded(s.width, step_of(s.width)), padded = rounded(s.keys, kTile);
    const int64_t heads = s.samples * s.heads, blocks = rounded(s.queries, kBlock) / kBlock;
    const bool magic = s.width <= 128;  // then the sums, of at most 255 * 128 each, keep within the float's 22 bits
    const int64_t key_bytes = rounded(padded * 4 * words, 64), start_bytes = rounded(4 * padded, 64);
    const int64_t value_bytes = rounded(padded * columns, 64), bytes = key_bytes + start_bytes + value_bytes;
#pragma omp parallel
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < heads; ++i) {
            const int64_t b = i / s.heads, h = i % s.heads;
            uint8_t* place = memory + i * bytes;
            pack_head(k + b * s.k_sample + h * s.k_head, v + b * s.v_sample + h * s.v_head, s, n, words, columns, magic,
                      reinterpret_cast<int32_t*>(place), reinterpret_cast<int32_t*>(place + key_bytes),
                      place + key_bytes + start_bytes, scratch);
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < heads * blocks; ++i) {
            const int64_t b = i / blocks / s.heads, h = i / blocks % s.heads, from = i % blocks * kBlock;
            const uint8_t* place = memory + i / blocks * bytes;
            const Head head{reinterpret_cast<const int32_t*>(place), reinterpret_cast<const int32_t*>(place + key_bytes), place + key_bytes + start_bytes};
            const T* own = q + b * s.q_sample + h * s.q_head + from * s.q_token;
            T* result = out + b * s.out_sample + h * s.out_head + from * s.out_token;
            const int64_t queries = s.queries - from < kBlock ? s.queries - from : kBlock;
            if (magic) block_of_codes<T, true>(head, own, result, queries, s, n, words, columns, scratch);
            else block_of_codes<T, false>(head, own, result, queries, s, n, words, columns, scratch);
        }
    }
}

#ifdef HALFTONE_BFLOAT16

// ---- bfloat16 ----

struct OfHalves {
    using Sum = __m512;
    static Sum load(const void* at) { return _mm512_load_ps(at); }
    static void store(void* at, Sum sum) { _mm512_store_ps(at, sum); }
    static Sum begin(int32_t) { return _mm512_setzero_ps(); }
    static Sum add(Sum sum, __m512i left, int32_t right) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(_mm512_set1_epi32(right)));
    }
};

constexpr int32_t kOnes = 0x3F803F80;  // two

// Keys [tiles][words of 2 channels][keys of a tile], values [padded keys / 2][columns][2].
void pack_head(const uint16_t* k, const uint16_t* v, const Shape& s, int64_t words, int64_t columns, int32_t* keys, uint8_t* values,
               Scratch& memory) {
    const int64_t padded = rounded(s.keys, kTile);
    uint8_t* row = memory.of(static_cast<size_t>(4 * words));
    std::memset(row, 0, static_cast<size_t>(4 * words));
    for (int64_t j = 0; j < padded; ++j) {
        if (j < s.keys) std::memcpy(row, k + j * s.k_token, static_cast<size_t>(2 * s.width));
        else std::memset(row, 0, static_cast<size_t>(4 * words));
        spread(row, words, keys, j);
    }
    for (int64_t j = 0; j < padded; j += 2)
        for (int64_t c = 0; c < columns; c += kLanes) {
            const __mmask16 mask = first(s.width - c > 0 ? s.width - c : 0), room = first(columns - c);
            __m512i both[2];
            for (int i = 0; i < 2; ++i) {
                const uint16_t* row = v + (j + i) * s.v_token + c;
                both[i] = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(j + i < s.keys ? mask : 0, row));
            }
            int32_t* out = reinterpret_cast<int32_t*>(values) + j / 2 * columns + c;
            _mm512_mask_storeu_epi32(out, room, _mm512_or_si512(both[0], _mm512_slli_epi32(both[1], 16)));
        }
}

// Probabilities (to a power of two, before the division by their sum) of a tile of keys, those of two keys in a word.
inline bool tile_of_halves(const int32_t* keys, const int32_t* q, int64_t words, int64_t count, float unit, Rows& rows, __m512 faded[2],
                           __m512i* out) {
    static constexpr int32_t kNoStart[kTile] = {};
    multiply<OfHalves>(keys, q, words, kNoStart, out);  // twice the room that the probabilities take
    __m512 scores[kTile][2];
#pragma GCC unroll 24
    for (int i = 0; i < 2 * kTile; ++i) scores[i / 2][i % 2] = _mm512_load_ps(out + i);
    const bool raised = exponentials(scores, count, unit, rows, faded);
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000));
#pragma GCC unroll 12
    for (int j = 0; j < kTile; j += 2)
        for (int h = 0; h < 2; ++h) {
            const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(scores[j][h]), half), 16);
            const __m512i high = _mm512_add_epi32(_mm512_castps_si512(scores[j + 1][h]), half);
            const __m512i both = _mm512_ternarylogic_epi32(low, high, upper, 0xF8);
            // As rounded: then the weights of a row sum to one, and one that outweighs the others is exact.
            rows.sum[h] = OfHalves::add(rows.sum[h], both, kOnes);
            _mm512_store_si512(out + j + h, both);
        }
    return raised;
}

void block_of_halves(const int32_t* keys, const uint8_t* values, const uint16_t* q, uint16_t* out, int64_t queries, const Shape& s,
                     float unit, int64_t words, int64_t columns, Scratch& memory) {
    const int64_t tiles = rounded(s.keys, kTile) / kTile, step = step_of(s.width);
    uint8_t* place = memory.of(static_cast<size_t>((kChunk + kTile) * 64 + 4 * columns * kBlock + 8 * words * kBlock + 64));
    __m512i* probabilities = reinterpret_cast<__m512i*>(place);
    float* sums = reinterpret_cast<float*>(probabilities + kChunk + kTile);
    int32_t* packed_q = reinterpret_cast<int32_t*>(sums + columns * kBlock);
    uint8_t* rows_of_q = reinterpret_cast<uint8_t*>(packed_q + words * kBlock);
    std::memset(rows_of_q, 0, static_cast<size_t>(4 * words * kBlock));
    for (int64_t i = 0; i < queries; ++i)
        std::memcpy(rows_of_q + i * 4 * words, q + i * s.q_token, static_cast<size_t>(2 * s.width));
    interleave(rows_of_q, words, packed_q);
    std::memset(sums, 0, static_cast<size_t>(4 * columns * kBlock));

    Rows rows;
    for (int h = 0; h < 2; ++h) rows.reference[h] = _mm512_set1_ps(-1e30f), rows.sum[h] = _mm512_setzero_ps();
    int64_t begin = 0, end = 0;  // tiles whose probabilities wait, relative to the same reference
    int64_t at = 0;              // where the first of them lies
    const auto flush = [&] {
        const __m512i* from = probabilities + at * kTile;
        const uint8_t* own = values + begin * kTile / 2 * 4 * columns;
        if (step == 10) add_values<OfHalves, 10>(from, own, (end - begin) * kTile / 2, columns, sums);
        else add_values<OfHalves, 8>(from, own, (end - begin) * kTile / 2, columns, sums);
        at += end - begin;
        begin = end;
    };
    for (int64_t t = 0; t < tiles; ++t) {
        if (at + end - begin == kChunk / kTile) flush(), at = 0;
        const int64_t count = s.keys - t * kTile < kTile ? s.keys - t * kTile : kTile;
        __m512 faded[2];
        __m512i* place_of_tile = probabilities + (at + end - begin) * kTile;
        if (tile_of_halves(keys + t * kTile * words, packed_q, words, count, unit, rows, faded, place_of_tile)) {
            flush();
            for (int64_t c = 0; c < columns; ++c)
                for (int h = 0; h < 2; ++h) {
                    float* sum = sums + c * kBlock + h * kLanes;
                    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), faded[h]));
                }
        }
        ++end;
    }
    flush();
    for (int h = 0; h < 2; ++h) {
        const __m512 whole = _mm512_div_ps(_mm512_set1_ps(1.0f), rows.sum[h]);
        for (int64_t c = 0; c < columns; ++c) {
            float* sum = sums + c * kBlock + h * kLanes;
            _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), whole));
        }
    }
    write_rows(sums, out, queries, s.out_token, s.width);
}

void attend_halves(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, const Shape& s, float unit, uint8_t* memory) {
    const int64_t words = rounded(s.width, 2) / 2, columns = rounded(s.width, step_of(s.width)), padded = rounded(s.keys, kTile);
    const int64_t heads = s.samples * s.heads, blocks = rounded(s.queries, kBlock) / kBlock;
    const int64_t key_bytes = rounded(padded * 4 * words, 64), bytes = key_bytes + rounded(2 * padded * columns, 64);
#pragma omp parallel
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < heads; ++i) {
            const int64_t b = i / s.heads, h = i % s.heads;
            uint8_t* place = memory + i * bytes;
            pack_head(k + b * s.k_sample + h * s.k_head, v + b * s.v_sample + h * s.v_head, s, words, columns,
                      reinterpret_cast<int32_t*>(place), place + key_bytes, scratch);
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < heads * blocks; ++i) {
            const int64_t b = i / blocks / s.heads, h = i / blocks % s.heads, from = i % blocks * kBlock;
            const uint8_t* place = memory + i / blocks * bytes;
            const int64_t queries = s.queries - from < kBlock ? s.queries - from : kBlock;
            block_of_halves(reinterpret_cast<const int32_t*>(place), place + key_bytes, q + b * s.q_sample + h * s.q_head + from * s.q_token,
                            out + b * s.out_sample + h * s.out_head + from * s.out_token, queries, s, unit, words, columns, scratch);
        }
    }
}
#endif

}  // namespace
#endif

extern "C" {

// Bytes that a call needs for keys and values.
int64_t halftone_attention_bytes(int64_t heads, int64_t keys, int64_t width) {
    const int64_t padded = keys + 16, columns = width + 16;
    return heads * (4 * padded * columns + 4 * padded + 256);
}

#ifdef HALFTONE_CODES
void halftone_attention_codes_float32(const void* q, const void* k, const void* v, void* out, const int64_t* shape, const float* real,
                                      const int32_t* whole, void* memory) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    const Codes n{{real[0], whole[0], whole[1]}, {real[1], whole[2], whole[3]}, {real[2], whole[4], whole[5]},
                  {real[3], 0, whole[6]},        real[4],                       real[5]};
    attend_codes(static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v), static_cast<float*>(out),
                 s, n, static_cast<uint8_t*>(memory));
}

void halftone_attention_codes_bfloat16(const void* q, const void* k, const void* v, void* out, const int64_t* shape, const float* real,
                                       const int32_t* whole, void* memory) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    const Codes n{{real[0], whole[0], whole[1]}, {real[1], whole[2], whole[3]}, {real[2], whole[4], whole[5]},
                  {real[3], 0, whole[6]},        real[4],                       real[5]};
    attend_codes(static_cast<const uint16_t*>(q), static_cast<const uint16_t*>(k), static_cast<const uint16_t*>(v),
                 static_cast<uint16_t*>(out), s, n, static_cast<uint8_t*>(memory));
}
#endif
#ifdef HALFTONE_BFLOAT16
void halftone_attention_bfloat16(const void* q, const void* k, const void* v, void* out, const int64_t* shape, float unit, void* memory) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    attend_halves(static_cast<const uint16_t*>(q), static_cast<const uint16_t*>(k), static_cast<const uint16_t*>(v),
                  static_cast<uint16_t*>(out), s, unit, static_cast<uint8_t*>(memory));
}
#endif
}
