// Arithmetic that CUDA has by name: conversions with a rounding, bit operations, fast and rounded mathematics.
#pragma once

#include <math.h>
#include <stdlib.h>

#include <climits>
#include <limits>
#include <cmath>
#include <type_traits>

#include "runtime.hpp"
#include "small_floats.hpp"

#define PROBE_INLINE __attribute__((always_inline)) inline

// min and max of mixed types, as CUDA's overloads: NaN gives way to a number.
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
PROBE_INLINE constexpr std::common_type_t<A, B> min(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return (C)b < (C)a || a != a ? (C)b : (C)a;
    else return (C)b < (C)a ? (C)b : (C)a;
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
PROBE_INLINE constexpr std::common_type_t<A, B> max(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return (C)a < (C)b || a != a ? (C)b : (C)a;
    else return (C)a < (C)b ? (C)b : (C)a;
}
PROBE_INLINE int umin(unsigned a, unsigned b) { return (int)(a < b ? a : b); }
PROBE_INLINE int umax(unsigned a, unsigned b) { return (int)(a > b ? a : b); }

#define PROBE_CAST(name, From, To) \
    PROBE_INLINE To name(From v) { return probe_emulation::bits_as<To>(v); }
PROBE_CAST(__float_as_int, float, int)
PROBE_CAST(__float_as_uint, float, unsigned)
PROBE_CAST(__int_as_float, int, float)
PROBE_CAST(__uint_as_float, unsigned, float)
PROBE_CAST(__double_as_longlong, double, long long)
PROBE_CAST(__longlong_as_double, long long, double)
#undef PROBE_CAST
PROBE_INLINE int __double2hiint(double v) { return (int)(probe_emulation::bits_as<long long>(v) >> 32); }
PROBE_INLINE int __double2loint(double v) { return (int)probe_emulation::bits_as<long long>(v); }
PROBE_INLINE double __hiloint2double(int high, int low) {
    return probe_emulation::bits_as<double>((long long)high << 32 | (unsigned)low);
}

namespace probe_emulation {
// As the GPU converts: out of range saturates, NaN is 0 (of 64 bits: the most negative; not used by kernels).
template <class To>
PROBE_INLINE To saturated(double v) {
    if (v != v) return 0;
    if (v <= (double)std::numeric_limits<To>::min()) return std::numeric_limits<To>::min();
    if (v >= (double)std::numeric_limits<To>::max()) return std::numeric_limits<To>::max();
    return (To)v;
}
}  // namespace probe_emulation

#define PROBE_TO(from, From, to, To)                                                                        \
    PROBE_INLINE To __##from##2##to##_rn(From v) { return probe_emulation::saturated<To>(nearbyint((double)v)); } \
    PROBE_INLINE To __##from##2##to##_rz(From v) { return probe_emulation::saturated<To>(trunc((double)v)); }     \
    PROBE_INLINE To __##from##2##to##_ru(From v) { return probe_emulation::saturated<To>(ceil((double)v)); }      \
    PROBE_INLINE To __##from##2##to##_rd(From v) { return probe_emulation::saturated<To>(floor((double)v)); }
PROBE_TO(float, float, int, int)
PROBE_TO(float, float, uint, unsigned)
PROBE_TO(float, float, ll, long long)
PROBE_TO(float, float, ull, unsigned long long)
PROBE_TO(double, double, int, int)
PROBE_TO(double, double, uint, unsigned)
PROBE_TO(double, double, ll, long long)
PROBE_TO(double, double, ull, unsigned long long)
#undef PROBE_TO
PROBE_INLINE float __int2float_rn(int v) { return (float)v; }
PROBE_INLINE float __int2float_rz(int v) { return (float)v; }
PROBE_INLINE float __uint2float_rn(unsigned v) { return (float)v; }
PROBE_INLINE float __ll2float_rn(long long v) { return (float)v; }
PROBE_INLINE float __ull2float_rn(unsigned long long v) { return (float)v; }
PROBE_INLINE double __int2double_rn(int v) { return (double)v; }
PROBE_INLINE double __uint2double_rn(unsigned v) { return (double)v; }
PROBE_INLINE double __ll2double_rn(long long v) { return (double)v; }
PROBE_INLINE float __double2float_rn(double v) { return (float)v; }

// Rounding other than to nearest differs in the last bit from the GPU's; kernels use it for bounds, seldom.
#define PROBE_ROUNDED(suffix)                                                               \
    PROBE_INLINE float __fadd_##suffix(float a, float b) { return a + b; }                  \
    PROBE_INLINE float __fsub_##suffix(float a, float b) { return a - b; }                  \
    PROBE_INLINE float __fmul_##suffix(float a, float b) { return a * b; }                  \
    PROBE_INLINE float __fdiv_##suffix(float a, float b) { return a / b; }                  \
    PROBE_INLINE float __fmaf_##suffix(float a, float b, float c) { return fmaf(a, b, c); } \
    PROBE_INLINE float __frcp_##suffix(float a) { return 1.0f / a; }                        \
    PROBE_INLINE float __fsqrt_##suffix(float a) { return sqrtf(a); }                       \
    PROBE_INLINE double __dadd_##suffix(double a, double b) { return a + b; }               \
    PROBE_INLINE double __dsub_##suffix(double a, double b) { return a - b; }               \
    PROBE_INLINE double __dmul_##suffix(double a, double b) { return a * b; }               \
    PROBE_INLINE double __ddiv_##suffix(double a, double b) { return a / b; }               \
    PROBE_INLINE double __drcp_##suffix(double a) { return 1.0 / a; }                       \
    PROBE_INLINE double __dsqrt_##suffix(double a) { return sqrt(a); }                      \
    PROBE_INLINE double __fma_##suffix(double a, double b, double c) { return fma(a, b, c); }
PROBE_ROUNDED(rn)
PROBE_ROUNDED(rz)
PROBE_ROUNDED(ru)
PROBE_ROUNDED(rd)
#undef PROBE_ROUNDED

PROBE_INLINE float rsqrtf(float v) { return (float)(1.0 / sqrt((double)v)); }
PROBE_INLINE double rsqrt(double v) { return 1.0 / sqrt(v); }
PROBE_INLINE float rsqrt(float v) { return rsqrtf(v); }
PROBE_INLINE float __frsqrt_rn(float v) { return rsqrtf(v); }
PROBE_INLINE float rcbrtf(float v) { return 1.0f / cbrtf(v); }
PROBE_INLINE float __expf(float v) { return expf(v); }
PROBE_INLINE float __exp10f(float v) { return (float)pow(10.0, (double)v); }
PROBE_INLINE float __logf(float v) { return logf(v); }
PROBE_INLINE float __log2f(float v) { return log2f(v); }
PROBE_INLINE float __log10f(float v) { return log10f(v); }
PROBE_INLINE float __sinf(float v) { return sinf(v); }
PROBE_INLINE float __cosf(float v) { return cosf(v); }
PROBE_INLINE float __tanf(float v) { return tanf(v); }
PROBE_INLINE float __tanhf(float v) { return tanhf(v); }
PROBE_INLINE float __powf(float a, float b) { return powf(a, b); }
PROBE_INLINE void __sincosf(float v, float* s, float* c) { *s = sinf(v), *c = cosf(v); }
PROBE_INLINE float __fdividef(float a, float b) { return a / b; }
PROBE_INLINE float fdividef(float a, float b) { return a / b; }
PROBE_INLINE float __saturatef(float v) { return v != v || v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v; }
PROBE_INLINE float normcdff(float v) { return (float)(0.5 * erfc(-(double)v * 0.70710678118654752440)); }
PROBE_INLINE double normcdf(double v) { return 0.5 * erfc(-v * 0.70710678118654752440); }
PROBE_INLINE float sinpif(float v) { return (float)sin(M_PI * (double)v); }
PROBE_INLINE float cospif(float v) { return (float)cos(M_PI * (double)v); }

PROBE_INLINE void sincospif(float v, float* s, float* c) { *s = sinpif(v), *c = cospif(v); }
PROBE_INLINE double sinpi(double v) { return sin(M_PI * v); }
PROBE_INLINE double cospi(double v) { return cos(M_PI * v); }
PROBE_INLINE float norm3df(float a, float b, float c) { return (float)sqrt((double)a * a + (double)b * b + (double)c * c); }
PROBE_INLINE float norm4df(float a, float b, float c, float d) { return (float)sqrt((double)a * a + (double)b * b + (double)c * c + (double)d * d); }
PROBE_INLINE float rnorm3df(float a, float b, float c) { return (float)(1.0 / sqrt((double)a * a + (double)b * b + (double)c * c)); }
PROBE_INLINE float rnorm4df(float a, float b, float c, float d) { return 1.0f / norm4df(a, b, c, d); }
PROBE_INLINE float rhypotf(float a, float b) { return (float)(1.0 / hypot((double)a, (double)b)); }
PROBE_INLINE float erfcxf(float v) { return (float)expl((long double)v * v + logl(erfcl((long double)v))); }
PROBE_INLINE float cyl_bessel_i0f(float v) { return (float)std::cyl_bessel_i(0.0, fabs((double)v)); }
PROBE_INLINE float cyl_bessel_i1f(float v) { return copysignf((float)std::cyl_bessel_i(1.0, fabs((double)v)), v); }
// By Newton's method on erfc from a start that is right to three digits.
PROBE_INLINE double erfcinv(double p) {
    if (!(p > 0 && p < 2)) return p == 0 ? INFINITY : p == 2 ? -INFINITY : NAN;
    const double q = p < 1 ? p : 2 - p, t = sqrt(-2 * log(q / 2));
    double x = -0.70711 * ((2.30753 + t * 0.27061) / (1 + t * (0.99229 + t * 0.04481)) - t);
    for (int i = 0; i < 3; ++i) {
        const double wrong = erfc(x) - q;
        x += wrong / (1.12837916709551257 * exp(-x * x) - x * wrong);
    }
    return p < 1 ? x : -x;
}
PROBE_INLINE double erfinv(double v) { return erfcinv(1 - v); }
PROBE_INLINE float erfinvf(float v) { return (float)erfinv((double)v); }
PROBE_INLINE float erfcinvf(float v) { return (float)erfcinv((double)v); }
PROBE_INLINE double normcdfinv(double p) { return -1.41421356237309505 * erfcinv(2 * p); }
PROBE_INLINE float normcdfinvf(float p) { return (float)normcdfinv((double)p); }

PROBE_INLINE int __popc(unsigned v) { return __builtin_popcount(v); }
PROBE_INLINE int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
PROBE_INLINE int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
PROBE_INLINE int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
PROBE_INLINE int __ffs(int v) { return __builtin_ffs(v); }
PROBE_INLINE int __ffsll(long long v) { return __builtin_ffsll(v); }
PROBE_INLINE unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
    return r;
}
PROBE_INLINE unsigned long long __brevll(unsigned long long v) {
    return (unsigned long long)__brev((unsigned)v) << 32 | __brev((unsigned)(v >> 32));
}
PROBE_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 0xf;
        unsigned byte = (unsigned)(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, repeated
        r |= byte << (8 * i);
    }
    return r;
}
PROBE_INLINE unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    shift &= 31;
    return shift ? hi << shift | lo >> (32 - shift) : hi;
}
PROBE_INLINE unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    shift &= 31;
    return shift ? hi << (32 - shift) | lo >> shift : lo;
}
PROBE_INLINE unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned shift) { return shift >= 32 ? lo : __funnelshift_l(lo, hi, shift); }
PROBE_INLINE unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned shift) { return shift >= 32 ? hi : __funnelshift_r(lo, hi, shift); }
// The place of the offset-th set bit from `base` on (towards lower bits where the offset is negative).
PROBE_INLINE unsigned __fns(unsigned mask, unsigned base, int offset) {
    if (offset == 0) return mask >> base & 1u ? base : 0xffffffffu;
    for (int at = (int)base, left = abs(offset); at >= 0 && at < 32; at += offset > 0 ? 1 : -1)
        if (mask >> at & 1u && --left == 0) return (unsigned)at;
    return 0xffffffffu;
}
PROBE_INLINE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
PROBE_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
PROBE_INLINE long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
PROBE_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
PROBE_INLINE int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
PROBE_INLINE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
PROBE_INLINE unsigned __sad(int a, int b, unsigned c) { return (unsigned)llabs((long long)a - b) + c; }
PROBE_INLINE unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a > b ? a - b : b - a) + c; }
PROBE_INLINE int __rhadd(int a, int b) { return (int)(((long long)a + b + 1) >> 1); }
PROBE_INLINE unsigned __uhadd(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a + b) >> 1); }
PROBE_INLINE unsigned __urhadd(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a + b + 1) >> 1); }
PROBE_INLINE int __hadd(int a, int b) { return (int)(((long long)a + b) >> 1); }
PROBE_INLINE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += (signed char)(a >> 8 * i) * (signed char)(b >> 8 * i);
    return c;
}
PROBE_INLINE unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; ++i) c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return c;
}
PROBE_INLINE int __dp2a_lo(int a, int b, int c) { return c + (short)a * (signed char)b + (a >> 16) * (signed char)(b >> 8); }
PROBE_INLINE int __dp2a_hi(int a, int b, int c) { return __dp2a_lo(a, b >> 16, c); }

// Two or four numbers in a word.
namespace probe_emulation {
template <class T, class F>
PROBE_INLINE unsigned lanewise(unsigned a, unsigned b, F f) {
    unsigned made = 0;
    for (unsigned at = 0; at < 32; at += 8 * sizeof(T)) {
        const int v = f((int)(T)(a >> at), (int)(T)(b >> at));
        made |= ((unsigned)v & ((1u << 8 * sizeof(T)) - 1u)) << at;
    }
    return made;
}
template <class T>
PROBE_INLINE int clamped(int v) { return v < std::numeric_limits<T>::min() ? std::numeric_limits<T>::min() : v > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max() : v; }
}  // namespace probe_emulation
#define PROBE_LANES(name, T, expression) \
    PROBE_INLINE unsigned name(unsigned a, unsigned b) { return probe_emulation::lanewise<T>(a, b, [](int x, int y) -> int { return expression; }); }
#define PROBE_SIMD(lanes, S, U)                                             \
    PROBE_LANES(__vadd##lanes, U, x + y)                                    \
    PROBE_LANES(__vsub##lanes, U, x - y)                                    \
    PROBE_LANES(__vaddss##lanes, S, probe_emulation::clamped<S>(x + y))     \
    PROBE_LANES(__vaddus##lanes, U, probe_emulation::clamped<U>(x + y))     \
    PROBE_LANES(__vsubss##lanes, S, probe_emulation::clamped<S>(x - y))     \
    PROBE_LANES(__vsubus##lanes, U, probe_emulation::clamped<U>(x - y))     \
    PROBE_LANES(__vmaxs##lanes, S, x > y ? x : y)                           \
    PROBE_LANES(__vmaxu##lanes, U, x > y ? x : y)                           \
    PROBE_LANES(__vmins##lanes, S, x < y ? x : y)                           \
    PROBE_LANES(__vminu##lanes, U, x < y ? x : y)                           \
    PROBE_LANES(__vavgs##lanes, S, (x + y + (x + y >= 0)) >> 1)             \
    PROBE_LANES(__vavgu##lanes, U, (x + y + 1) >> 1)                        \
    PROBE_LANES(__vhaddu##lanes, U, (x + y) >> 1)                           \
    PROBE_LANES(__vabsdiffs##lanes, S, x > y ? x - y : y - x)               \
    PROBE_LANES(__vabsdiffu##lanes, U, x > y ? x - y : y - x)               \
    PROBE_LANES(__vcmpeq##lanes, U, x == y ? -1 : 0)                        \
    PROBE_LANES(__vcmpne##lanes, U, x != y ? -1 : 0)                        \
    PROBE_LANES(__vcmpgts##lanes, S, x > y ? -1 : 0)                        \
    PROBE_LANES(__vcmpgtu##lanes, U, x > y ? -1 : 0)                        \
    PROBE_LANES(__vcmpges##lanes, S, x >= y ? -1 : 0)                       \
    PROBE_LANES(__vcmpgeu##lanes, U, x >= y ? -1 : 0)                       \
    PROBE_LANES(__vcmplts##lanes, S, x < y ? -1 : 0)                        \
    PROBE_LANES(__vcmpltu##lanes, U, x < y ? -1 : 0)                        \
    PROBE_LANES(__vcmples##lanes, S, x <= y ? -1 : 0)                       \
    PROBE_LANES(__vcmpleu##lanes, U, x <= y ? -1 : 0)                       \
    PROBE_LANES(__vseteq##lanes, U, x == y)                                 \
    PROBE_LANES(__vsetgtu##lanes, U, x > y)                                 \
    PROBE_INLINE unsigned __vneg##lanes(unsigned a) { return __vsub##lanes(0, a); }          \
    PROBE_INLINE unsigned __vnegss##lanes(unsigned a) { return __vsubss##lanes(0, a); }      \
    PROBE_INLINE unsigned __vabs##lanes(unsigned a) { return __vabsdiffs##lanes(a, 0); }     \
    PROBE_INLINE unsigned __vabsss##lanes(unsigned a) { return __vmaxs##lanes(a, __vnegss##lanes(a)); }
PROBE_SIMD(2, short, unsigned short)
PROBE_SIMD(4, signed char, unsigned char)
#undef PROBE_SIMD
#undef PROBE_LANES
PROBE_INLINE unsigned __vsadu4(unsigned a, unsigned b) { return __dp4a(__vabsdiffu4(a, b), 0x01010101u, 0u); }
PROBE_INLINE unsigned __vsads4(unsigned a, unsigned b) { return __dp4a(__vabsdiffs4(a, b), 0x01010101u, 0u); }

// Loads and stores with a cache hint are plain ones.
#define PROBE_LOAD(name) \
    template <class T> PROBE_INLINE T name(const T* p) { return *p; }
PROBE_LOAD(__ldg)
PROBE_LOAD(__ldcg)
PROBE_LOAD(__ldca)
PROBE_LOAD(__ldcs)
PROBE_LOAD(__ldlu)
PROBE_LOAD(__ldcv)
#undef PROBE_LOAD
#define PROBE_STORE(name) \
    template <class T> PROBE_INLINE void name(T* p, T v) { *p = v; }
PROBE_STORE(__stwb)
PROBE_STORE(__stcg)
PROBE_STORE(__stcs)
PROBE_STORE(__stwt)
#undef PROBE_STORE
PROBE_INLINE std::size_t __cvta_generic_to_shared(const void* p) { return probe_emulation::shared_window(p); }
PROBE_INLINE void* __cvta_shared_to_generic(std::size_t at) { return probe_emulation::from_shared_window((unsigned)at); }
PROBE_INLINE void* __cvta_global_to_generic(std::size_t at) { return (void*)at; }
PROBE_INLINE std::size_t __cvta_generic_to_global(const void* p) { return (std::size_t)p; }
