// The floating-point formats of 8 bits: E4M3 (finite, greatest 448) and E5M2 (as IEEE's, greatest finite 57344).
#pragma once

#include <algorithm>

#include "small_floats.hpp"

namespace probe_emulation {

template <int Exponent, int Mantissa, int Bias, unsigned char Greatest, unsigned char Infinity, unsigned char NotANumber>
struct Float8 {
    static constexpr unsigned char greatest = Greatest, infinity = Infinity, quiet_nan = NotANumber;

    static float widen(unsigned char bits) {
        const unsigned exponent = bits >> Mantissa & ((1u << Exponent) - 1), mantissa = bits & ((1u << Mantissa) - 1);
        const float sign = bits & 0x80 ? -1.0f : 1.0f;
        if ((bits & 0x7f) > Greatest) return (bits & 0x7f) == Infinity && Infinity != NotANumber ? sign * INFINITY : NAN;
        if (exponent == 0) return sign * std::ldexp((float)mantissa, 1 - Bias - Mantissa);
        return sign * std::ldexp((float)(mantissa | 1u << Mantissa), (int)exponent - Bias - Mantissa);
    }

    // To nearest, ties to even; what is too large becomes the greatest number (`finite`) or infinity (E4M3: not a number).
    static unsigned char narrow(double value, bool finite) {
        if (value != value) return NotANumber;
        const unsigned char sign = std::signbit(value) ? 0x80 : 0;
        const double size = std::fabs(value);
        if (size == 0) return sign;
        if (std::isinf(size)) return sign | (finite ? Greatest : Infinity);
        int exponent;
        std::frexp(size, &exponent);  // size = [0.5, 1) * 2^exponent
        const int least = std::max(exponent - 1, 1 - Bias) - Mantissa;  // the power of two that the last bit is worth
        const long steps = (long)std::nearbyint(std::ldexp(size, -least));
        const long bits = steps + ((long)(least + Mantissa + Bias - 1) << Mantissa);  // a carry goes into the exponent
        return sign | (unsigned char)(bits > Greatest ? (finite ? Greatest : Infinity) : bits);
    }
};
using E4M3 = Float8<4, 3, 7, 0x7e, 0x7f, 0x7f>;
using E5M2 = Float8<5, 2, 15, 0x7b, 0x7c, 0x7f>;

template <class Format>
struct Byte {
    unsigned char bits;
};
template <class Format>
struct TwoBytes {
    unsigned short bits;
    float low() const { return Format::widen((unsigned char)bits); }
    float high() const { return Format::widen((unsigned char)(bits >> 8)); }
    static TwoBytes of(float low, float high) { return {(unsigned short)(Format::narrow(low, true) | Format::narrow(high, true) << 8)}; }
};
template <class Format>
inline float factor(const Byte<Format>& v) { return Format::widen(v.bits); }

}  // namespace probe_emulation
