// The vector types of CUDA, with its alignments: float4, int2, uchar4 ... and make_*.
#pragma once

#include "runtime.hpp"

#define PROBE_VECTORS(base, T, align2, align4)                                                        \
    struct base##1 {                                                                                  \
        T x;                                                                                          \
    };                                                                                                \
    struct __attribute__((aligned(align2))) base##2 {                                                 \
        T x, y;                                                                                       \
    };                                                                                                \
    PROBE_THREE_OF(base, T)                                                                           \
    struct __attribute__((aligned(align4))) base##4 {                                                 \
        T x, y, z, w;                                                                                 \
    };                                                                                                \
    inline base##1 make_##base##1(T x) { return {x}; }                                                \
    inline base##2 make_##base##2(T x, T y) { return {x, y}; }                                        \
    inline base##3 make_##base##3(T x, T y, T z) { return {x, y, z}; }                                \
    inline base##4 make_##base##4(T x, T y, T z, T w) { return {x, y, z, w}; }

#define PROBE_THREE_OF(base, T) \
    struct base##3 {            \
        T x, y, z;              \
    };
PROBE_VECTORS(char, signed char, 2, 4)
PROBE_VECTORS(uchar, unsigned char, 2, 4)
PROBE_VECTORS(short, short, 4, 8)
PROBE_VECTORS(ushort, unsigned short, 4, 8)
PROBE_VECTORS(int, int, 8, 16)
PROBE_VECTORS(long, long, 16, 16)
PROBE_VECTORS(ulong, unsigned long, 16, 16)
PROBE_VECTORS(longlong, long long, 16, 16)
PROBE_VECTORS(ulonglong, unsigned long long, 16, 16)
PROBE_VECTORS(float, float, 8, 16)
PROBE_VECTORS(double, double, 16, 16)
#undef PROBE_THREE_OF
#define PROBE_THREE_OF(base, T)  // uint3 is the type of the indices
PROBE_VECTORS(uint, unsigned, 8, 16)
#undef PROBE_THREE_OF
#undef PROBE_VECTORS
