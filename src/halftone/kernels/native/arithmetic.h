// What the loops share: codes, bfloat16, exp. See codes.cpp for how exact each is.

#pragma once

#include <cstdint>
#include <cstring>

namespace halftone {

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
constexpr int64_t kGrain = 1 << 14;    // elements that are worth a thread

inline uint8_t code(float x, float factor, float offset, float top, int shift) {
    float y = x * factor;
    y = y + offset;
    y = y < kMagic ? kMagic : (y > top ? top : y);
    int32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    return static_cast<uint8_t>(bits >> shift);
}

inline float widened(float x) { return x; }

inline float widened(uint16_t x) {  // bfloat16
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

// Round to nearest, halves to even, as PyTorch does; NaN stays one.
inline uint16_t narrowed(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// exp(x) for x <= 88, about one unit in the last place of float32: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes).
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float shifted = x * 1.44269504088896341f + kMagic;
    const float k = shifted - kMagic;
    float r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + (127 << 23);
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

}  // namespace halftone
