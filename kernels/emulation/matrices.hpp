// Products of small matrices that a warp holds in registers: what mma.sync and wmma are made of.
#pragma once

#include "warp.hpp"

namespace probe_emulation {

struct tf32 {  // in 32 bits, of which the last 13 count for nothing
    float value;
};

// As the matrix units multiply: exact products, sums in the accumulator's type (half: in float, rounded at the end).
template <class T>
PROBE_INLINE float factor(const T& v) { return (float)v; }
PROBE_INLINE int factor(signed char v) { return v; }
PROBE_INLINE int factor(unsigned char v) { return v; }
PROBE_INLINE double factor(double v) { return v; }
PROBE_INLINE float factor(const tf32& v) { return bits_as<float>(bits_as<unsigned>(v.value) & 0xffffe000u); }

PROBE_INLINE float multiplied(float a, float b, float sum) { return fmaf(a, b, sum); }
PROBE_INLINE double multiplied(double a, double b, double sum) { return fma(a, b, sum); }
PROBE_INLINE int multiplied(int a, int b, int sum) { return (int)((unsigned)a * (unsigned)b + (unsigned)sum); }

// The whole warp meets, as at every instruction that is `.sync.aligned`; memory is not ordered.
PROBE_INLINE void warp_meets() {
    unsigned participants;
    meet(0xffffffffu, exchange, nullptr, 0, &participants, false);
}

}  // namespace probe_emulation
