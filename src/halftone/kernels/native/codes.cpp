// Activations to codes in one pass over memory, and the product of a few rows of codes with a matrix, which is over before a call of
// oneDNN has begun. Plain loops that a compiler vectorises; no headers of PyTorch.
//
// A code is exactly what onednn_int8 computes without these loops: a product and a sum in float32, rounded each (never fused:
// -ffp-contract=off), where adding 1.5 * 2^23 rounds half to even and leaves the code in the low bits. The norm and SiLU before it
// are PyTorch's up to rounding.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arithmetic.h"

using namespace halftone;

namespace {

template <typename T>
void encode(const T* x, uint8_t* out, int64_t rows, int64_t width, int64_t stride, float factor, float offset, float top,
            int shift) {
    // Long rows are cut, short ones are gathered: every thread gets about as much.
    const int64_t cut = width > kGrain ? kGrain : width;
    const int64_t cuts = (width + cut - 1) / cut;
    const int64_t pieces = rows * cuts;
    const float limit = kMagic + top;
#pragma omp parallel for schedule(static) if (rows * width > kGrain)
    for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t row = piece / cuts, from = (piece % cuts) * cut;
        const int64_t count = from + cut < width ? cut : width - from;
        const T* __restrict__ source = x + row * stride + from;
        uint8_t* __restrict__ target = out + row * width + from;
        for (int64_t i = 0; i < count; ++i) target[i] = code(widened(source[i]), factor, offset, limit, shift);
    }
}

template <typename T>
void add(const T* __restrict__ x, float* __restrict__ sums, int64_t channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sums[c] += widened(x[c]);
}

template <typename T>
void add_squares(const T* __restrict__ x, const float* __restrict__ mean, float* __restrict__ sums, int64_t channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sums[c] += (widened(x[c]) - mean[c]) * (widened(x[c]) - mean[c]);
}

template <typename T>
void finish(const T* __restrict__ x, uint8_t* __restrict__ out, const float* __restrict__ slope, const float* __restrict__ shift,
            int64_t channels, float factor, float offset, float limit) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) out[c] = code(widened(x[c]) * slope[c] + shift[c], factor, offset, limit, 0);
}

template <typename T>
void finish_silu(const T* __restrict__ x, uint8_t* __restrict__ out, const float* __restrict__ slope,
                 const float* __restrict__ shift, int64_t channels, float factor, float offset, float limit) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
        const float y = widened(x[c]) * slope[c] + shift[c];
        out[c] = code(y / (1.0f + exponential(-y)), factor, offset, limit, 0);
    }
}

// Replace each channel's sum by its group's mean.
void average(std::vector<float>& sums, int64_t groups, double count) {
    const int64_t size = static_cast<int64_t>(sums.size()) / groups;
    for (int64_t g = 0; g < groups; ++g) {
        double total = 0;
        for (int64_t c = g * size; c < (g + 1) * size; ++c) total += sums[c];
        for (int64_t c = g * size; c < (g + 1) * size; ++c) sums[c] = static_cast<float>(total / count);
    }
}

template <typename T>
void normalise(const T* x, uint8_t* out, int64_t samples, int64_t pixels, int64_t channels, int64_t groups, const float* weight,
               const float* bias, float eps, int silu, float factor, float offset, float top) {
    const float limit = kMagic + top;
    const double count = static_cast<double>(pixels) * static_cast<double>(channels / groups);
    // Pieces of a sample, so that one sample keeps several threads busy; their number depends on the sizes alone, and so does the
    // order of every sum.
    const int64_t length = pixels * channels > kGrain ? (kGrain + channels - 1) / channels : pixels;
    const int64_t cuts = (pixels + length - 1) / length;
    std::vector<float> sums(samples * cuts * channels), mean(samples * channels), slope(samples * channels),
        shift(samples * channels);
    const auto each = [&](auto&& work) {
#pragma omp parallel for schedule(static) if (samples * cuts > 1)
        for (int64_t piece = 0; piece < samples * cuts; ++piece) {
            const int64_t n = piece / cuts, from = (piece % cuts) * length;
            const int64_t to = from + length < pixels ? from + length : pixels;
            for (int64_t p = from; p < to; ++p) work(n, (n * pixels + p) * channels, sums.data() + piece * channels);
        }
    };
    // Add up the pieces of sample n, as the mean of each group, and leave zeros for the next time.
    const auto averaged = [&](int64_t n) {
        std::vector<float> total(channels);
        for (int64_t cut = 0; cut < cuts; ++cut) {
            float* part = sums.data() + (n * cuts + cut) * channels;
            for (int64_t c = 0; c < channels; ++c) total[c] += part[c], part[c] = 0;
        }
        average(total, groups, count);
        return total;
    };
    // The mean first and the squares about it second: a sum of plain squares loses a small variance beside a large mean.
    each([&](int64_t, int64_t at, float* sum) { add(x + at, sum, channels); });
    for (int64_t n = 0; n < samples; ++n) {
        const std::vector<float> found = averaged(n);
        std::memcpy(mean.data() + n * channels, found.data(), channels * sizeof(float));
    }
    each([&](int64_t n, int64_t at, float* sum) { add_squares(x + at, mean.data() + n * channels, sum, channels); });
    for (int64_t n = 0; n < samples; ++n) {
        const std::vector<float> variance = averaged(n);
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t i = n * channels + c;
            slope[i] = (weight ? weight[c] : 1.0f) / std::sqrt(variance[c] + eps);
            shift[i] = (bias ? bias[c] : 0.0f) - mean[i] * slope[i];
        }
    }
    const auto last = silu ? finish_silu<T> : finish<T>;
    each([&](int64_t n, int64_t at, float*) {
        last(x + at, out + at, slope.data() + n * channels, shift.data() + n * channels, channels, factor, offset, limit);
    });
}

// Layer norm and codes, a row at a time; the row stays in the first-level cache.
template <typename T>
void normalise_rows(const T* x, uint8_t* out, int64_t rows, int64_t width, const float* weight, const float* bias, float eps,
                    float factor, float offset, float top) {
    const float limit = kMagic + top;
#pragma omp parallel if (rows * width > kGrain)
    {
        std::vector<float> y(width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const T* __restrict__ from = x + r * width;
            float* __restrict__ values = y.data();
            float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; ++i) values[i] = widened(from[i]), sum += values[i];
            const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; ++i) values[i] -= mean, squares += values[i] * values[i];
            const float slope = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
            uint8_t* __restrict__ to = out + r * width;
            if (weight && bias) {
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) to[i] = code(values[i] * slope * weight[i] + bias[i], factor, offset, limit, 0);
            } else {
#pragma omp simd
                for (int64_t i = 0; i < width; ++i)
                    to[i] = code(values[i] * slope * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f), factor, offset, limit, 0);
            }
        }
    }
}

// Sums are exact; then two products and a sum in float32, as in the definition.
void multiply(const uint8_t* x, const int8_t* weight, float* out, int64_t rows, int64_t width, int64_t outputs,
              const int32_t* offset, const float* scale, const float* bias) {
#pragma omp parallel for schedule(static) if (rows * width * outputs > 32 * kGrain)
    for (int64_t o = 0; o < outputs; ++o) {
        const int8_t* __restrict__ w = weight + o * width;
        for (int64_t r = 0; r < rows; ++r) {
            const uint8_t* __restrict__ values = x + r * width;
            int32_t sum = 0;
            for (int64_t i = 0; i < width; ++i) sum += static_cast<int32_t>(values[i]) * static_cast<int32_t>(w[i]);
            out[r * outputs + o] = static_cast<float>(sum - offset[o]) * scale[o] + (bias ? bias[o] : 0.0f);
        }
    }
}

}  // namespace

extern "C" {

// Whether the loops of this library run on several threads: not every compiler has OpenMP, or the one that PyTorch brings.
int halftone_parallel() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// rows x width values, a row every `stride` elements, to dense codes; `top` is the greatest code, `shift` 8 for its high byte.
void halftone_encode_float32(const float* x, uint8_t* out, int64_t rows, int64_t width, int64_t stride, float factor, float offset,
                             float top, int shift) {
    encode(x, out, rows, width, stride, factor, offset, top, shift);
}

void halftone_encode_bfloat16(const uint16_t* x, uint8_t* out, int64_t rows, int64_t width, int64_t stride, float factor,
                              float offset, float top, int shift) {
    encode(x, out, rows, width, stride, factor, offset, top, shift);
}

// rows x width codes times the transpose of outputs x width int8 weights; `offset` is what the codes' zero point adds to each sum.
void halftone_multiply(const uint8_t* x, const int8_t* weight, float* out, int64_t rows, int64_t width, int64_t outputs,
                       const int32_t* offset, const float* scale, const float* bias) {
    multiply(x, weight, out, rows, width, outputs, offset, scale, bias);
}

// Group norm, SiLU where wanted, and codes of at most 8 bits; x and out are dense with the channels last.
void halftone_normalise_float32(const float* x, uint8_t* out, int64_t samples, int64_t pixels, int64_t channels, int64_t groups,
                                const float* weight, const float* bias, float eps, int silu, float factor, float offset, float top) {
    normalise(x, out, samples, pixels, channels, groups, weight, bias, eps, silu, factor, offset, top);
}

void halftone_normalise_bfloat16(const uint16_t* x, uint8_t* out, int64_t samples, int64_t pixels, int64_t channels, int64_t groups,
                                 const float* weight, const float* bias, float eps, int silu, float factor, float offset, float top) {
    normalise(x, out, samples, pixels, channels, groups, weight, bias, eps, silu, factor, offset, top);
}

// Layer norm of rows x width values, and codes of at most 8 bits.
void halftone_normalise_rows_float32(const float* x, uint8_t* out, int64_t rows, int64_t width, const float* weight, const float* bias,
                                     float eps, float factor, float offset, float top) {
    normalise_rows(x, out, rows, width, weight, bias, eps, factor, offset, top);
}

void halftone_normalise_rows_bfloat16(const uint16_t* x, uint8_t* out, int64_t rows, int64_t width, const float* weight,
                                      const float* bias, float eps, float factor, float offset, float top) {
    normalise_rows(x, out, rows, width, weight, bias, eps, factor, offset, top);
}
}
