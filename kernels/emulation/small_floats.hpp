// __half and __nv_bfloat16: 16 bits, every operation rounded once to nearest even, NaNs canonical as the GPU makes them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.hpp"

namespace probe_emulation {

template <class To, class From>
__attribute__((always_inline)) inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// The bits alone, as CUDA's structures of these names have them.
struct HalfBits {
    unsigned short x;
};
struct BrainBits {
    unsigned short x;
};
template <class Bits>
struct TwoOf {
    unsigned short x, y;
};

enum class Rounding { nearest, zero, up, down };

struct Binary16 {
    using Bits = HalfBits;
    static constexpr unsigned short quiet_nan = 0x7fff, infinity = 0x7c00, greatest = 0x7bff;
    static float widen(unsigned short bits) { return (float)bits_as<_Float16>(bits); }
    template <class Wide>
    static unsigned short narrow(Wide value) {
        return value != value ? quiet_nan : bits_as<unsigned short>((_Float16)value);
    }
};

struct Brain16 {
    using Bits = BrainBits;
    static constexpr unsigned short quiet_nan = 0x7fff, infinity = 0x7f80, greatest = 0x7f7f;
    static float widen(unsigned short bits) { return bits_as<float>((unsigned)bits << 16); }
    static unsigned short narrow(float value) {
        if (value != value) return quiet_nan;
        const unsigned bits = bits_as<unsigned>(value);
        return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    static unsigned short narrow(double value) {  // rounded to odd first, so that rounding twice is rounding once
        float near = (float)value;
        unsigned bits = bits_as<unsigned>(near);
        if (!std::isinf(near) && (double)near != value) {
            if (std::fabs((double)near) > std::fabs(value)) bits -= 1;
            bits |= 1u;
        }
        return std::isinf(near) ? narrow(near) : narrow(bits_as<float>(bits));
    }
};

template <class Format>
struct Small {
    using Bits = typename Format::Bits;
    unsigned short bits;

    Small() = default;
    constexpr Small(const Small&) = default;
    Small& operator=(const Small&) = default;
    Small(float value) : bits(Format::narrow(value)) {}
    Small(double value) : bits(Format::narrow(value)) {}
#define PROBE_FROM_INTEGER(T) \
    Small(T value) : bits(Format::narrow((double)value)) {}
    PROBE_FROM_INTEGER(short)
    PROBE_FROM_INTEGER(unsigned short)
    PROBE_FROM_INTEGER(int)
    PROBE_FROM_INTEGER(unsigned)
    PROBE_FROM_INTEGER(long)
    PROBE_FROM_INTEGER(unsigned long)
    PROBE_FROM_INTEGER(long long)
    PROBE_FROM_INTEGER(unsigned long long)
#undef PROBE_FROM_INTEGER
    template <class T, class = decltype(T::other_format)>
    Small(T) = delete;

    static Small of(unsigned short bits) {
        Small made;
        made.bits = bits;
        return made;
    }
    Small(Bits raw) : bits(raw.x) {}
    operator Bits() const { return {bits}; }
    operator float() const { return Format::widen(bits); }
    explicit operator bool() const { return (bits & 0x7fff) != 0; }
#define PROBE_TO_INTEGER(T) \
    explicit operator T() const { return (T)Format::widen(bits); }
    PROBE_TO_INTEGER(signed char)
    PROBE_TO_INTEGER(unsigned char)
    PROBE_TO_INTEGER(short)
    PROBE_TO_INTEGER(unsigned short)
    PROBE_TO_INTEGER(int)
    PROBE_TO_INTEGER(unsigned)
    PROBE_TO_INTEGER(long)
    PROBE_TO_INTEGER(unsigned long)
    PROBE_TO_INTEGER(long long)
    PROBE_TO_INTEGER(unsigned long long)
#undef PROBE_TO_INTEGER

// One rounding from float is one rounding from the exact value: 24 >= 2 * 11 + 2 bits (2 * 8 + 2 for bfloat16).
#define PROBE_OPERATOR(op)                                                                           \
    friend Small operator op(const Small& a, const Small& b) { return Small((float)a op (float)b); } \
    friend Small& operator op##=(Small& a, const Small& b) { return a = a op b; }
    PROBE_OPERATOR(+)
    PROBE_OPERATOR(-)
    PROBE_OPERATOR(*)
    PROBE_OPERATOR(/)
#undef PROBE_OPERATOR
#define PROBE_COMPARISON(op) \
    friend bool operator op(const Small& a, const Small& b) { return (float)a op(float) b; }
    PROBE_COMPARISON(==)
    PROBE_COMPARISON(!=)
    PROBE_COMPARISON(<)
    PROBE_COMPARISON(>)
    PROBE_COMPARISON(<=)
    PROBE_COMPARISON(>=)
#undef PROBE_COMPARISON
    friend Small operator-(const Small& a) { return of(a.bits ^ 0x8000); }
    friend Small operator+(const Small& a) { return a; }
    Small& operator++() { return *this += Small(1.0f); }
    Small& operator--() { return *this -= Small(1.0f); }
};

template <class Format>
struct alignas(4) Pair {
    Small<Format> x, y;

    Pair() = default;
    Pair(const Small<Format>& x, const Small<Format>& y) : x(x), y(y) {}
    Pair(TwoOf<typename Format::Bits> raw) : x(Small<Format>::of(raw.x)), y(Small<Format>::of(raw.y)) {}
    operator TwoOf<typename Format::Bits>() const { return {x.bits, y.bits}; }
#define PROBE_OPERATOR(op)                                                                    \
    friend Pair operator op(const Pair& a, const Pair& b) { return {a.x op b.x, a.y op b.y}; } \
    friend Pair& operator op##=(Pair& a, const Pair& b) { return a = a op b; }
    PROBE_OPERATOR(+)
    PROBE_OPERATOR(-)
    PROBE_OPERATOR(*)
    PROBE_OPERATOR(/)
#undef PROBE_OPERATOR
#define PROBE_COMPARISON(op) \
    friend bool operator op(const Pair& a, const Pair& b) { return a.x op b.x && a.y op b.y; }
    PROBE_COMPARISON(==)
    PROBE_COMPARISON(!=)
    PROBE_COMPARISON(<)
    PROBE_COMPARISON(>)
    PROBE_COMPARISON(<=)
    PROBE_COMPARISON(>=)
#undef PROBE_COMPARISON
    friend Pair operator-(const Pair& a) { return {-a.x, -a.y}; }
};

template <class F>
unsigned short rounded(double value, Rounding how) {
    const Small<F> near(value);
    const double got = (float)near;
    if (value != value || got == value) return near.bits;
    const bool away = std::fabs(got) > std::fabs(value), negative = std::signbit(value);
    const bool outward = how == Rounding::up ? !negative : how == Rounding::down ? negative : false;
    if (how == Rounding::nearest || away == outward) return near.bits;
    return (unsigned short)(away ? near.bits - 1 : near.bits + 1);
}

}  // namespace probe_emulation

using __half = probe_emulation::Small<probe_emulation::Binary16>;
using __half2 = probe_emulation::Pair<probe_emulation::Binary16>;
using __nv_bfloat16 = probe_emulation::Small<probe_emulation::Brain16>;
using __nv_bfloat162 = probe_emulation::Pair<probe_emulation::Brain16>;
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

using __half_raw = probe_emulation::HalfBits;
using __half2_raw = probe_emulation::TwoOf<probe_emulation::HalfBits>;
using __nv_bfloat16_raw = probe_emulation::BrainBits;
using __nv_bfloat162_raw = probe_emulation::TwoOf<probe_emulation::BrainBits>;

// The names of cuda_fp16.h and cuda_bf16.h that have the type in them.
#define PROBE_NAMES(half, Half, half2, prefix, Format)                                                             \
    inline Half __float2##half(float v) { return Half(v); }                                                       \
    inline Half __float2##half##_rn(float v) { return Half(v); }                                                  \
    inline Half __float2##half##_rz(float v) {                                                                    \
        return Half::of(probe_emulation::rounded<Format>(v, probe_emulation::Rounding::zero));                    \
    }                                                                                                             \
    inline Half __float2##half##_ru(float v) {                                                                    \
        return Half::of(probe_emulation::rounded<Format>(v, probe_emulation::Rounding::up));                      \
    }                                                                                                             \
    inline Half __float2##half##_rd(float v) {                                                                    \
        return Half::of(probe_emulation::rounded<Format>(v, probe_emulation::Rounding::down));                    \
    }                                                                                                             \
    inline Half __double2##half(double v) { return Half(v); }                                                     \
    inline float __##half##2float(Half v) { return v; }                                                           \
    inline half2 __float2##half##2_rn(float v) { return {Half(v), Half(v)}; }                                     \
    inline half2 __floats2##half##2_rn(float x, float y) { return {Half(x), Half(y)}; }                           \
    inline half2 __float22##half##2_rn(float2 v) { return {Half(v.x), Half(v.y)}; }                               \
    inline float2 __##half##22float2(half2 v) { return {(float)v.x, (float)v.y}; }                                \
    inline half2 __##half##2##half##2(Half v) { return {v, v}; }                                                  \
    inline int __##half##2int_rn(Half v) { return (int)nearbyintf(v); }                                           \
    inline int __##half##2int_rz(Half v) { return (int)(float)v; }                                                \
    inline int __##half##2int_ru(Half v) { return (int)ceilf(v); }                                                \
    inline int __##half##2int_rd(Half v) { return (int)floorf(v); }                                               \
    inline unsigned __##half##2uint_rn(Half v) { return (unsigned)nearbyintf(v); }                                \
    inline Half __int2##half##_rn(int v) { return Half(v); }                                                      \
    inline Half __uint2##half##_rn(unsigned v) { return Half(v); }                                                \
    inline Half __short2##half##_rn(short v) { return Half(v); }                                                  \
    inline Half __ushort2##half##_rn(unsigned short v) { return Half(v); }                                        \
    inline Half __ushort_as_##half(unsigned short v) { return Half::of(v); }                                      \
    inline Half __short_as_##half(short v) { return Half::of((unsigned short)v); }                                \
    inline unsigned short __##half##_as_ushort(Half v) { return v.bits; }                                         \
    inline short __##half##_as_short(Half v) { return (short)v.bits; }
PROBE_NAMES(half, __half, __half2, , probe_emulation::Binary16)
PROBE_NAMES(bfloat16, __nv_bfloat16, __nv_bfloat162, , probe_emulation::Brain16)
#undef PROBE_NAMES

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }

#define PROBE_SMALL template <class F> inline probe_emulation::Small<F>
#define PROBE_PAIR template <class F> inline probe_emulation::Pair<F>
#define PROBE_S probe_emulation::Small<F>
#define PROBE_P probe_emulation::Pair<F>

PROBE_PAIR __halves2half2(PROBE_S x, PROBE_S y) { return {x, y}; }
PROBE_PAIR __halves2bfloat162(PROBE_S x, PROBE_S y) { return {x, y}; }
PROBE_SMALL __low2half(PROBE_P v) { return v.x; }
PROBE_SMALL __high2half(PROBE_P v) { return v.y; }
PROBE_SMALL __low2bfloat16(PROBE_P v) { return v.x; }
PROBE_SMALL __high2bfloat16(PROBE_P v) { return v.y; }
template <class F> inline float __low2float(PROBE_P v) { return v.x; }
template <class F> inline float __high2float(PROBE_P v) { return v.y; }
PROBE_PAIR __low2half2(PROBE_P v) { return {v.x, v.x}; }
PROBE_PAIR __high2half2(PROBE_P v) { return {v.y, v.y}; }
PROBE_PAIR __low2bfloat162(PROBE_P v) { return {v.x, v.x}; }
PROBE_PAIR __high2bfloat162(PROBE_P v) { return {v.y, v.y}; }
PROBE_PAIR __lows2half2(PROBE_P a, PROBE_P b) { return {a.x, b.x}; }
PROBE_PAIR __highs2half2(PROBE_P a, PROBE_P b) { return {a.y, b.y}; }
PROBE_PAIR __lowhigh2highlow(PROBE_P v) { return {v.y, v.x}; }

PROBE_SMALL __hadd(PROBE_S a, PROBE_S b) { return a + b; }
PROBE_SMALL __hsub(PROBE_S a, PROBE_S b) { return a - b; }
PROBE_SMALL __hmul(PROBE_S a, PROBE_S b) { return a * b; }
PROBE_SMALL __hadd_rn(PROBE_S a, PROBE_S b) { return a + b; }
PROBE_SMALL __hsub_rn(PROBE_S a, PROBE_S b) { return a - b; }
PROBE_SMALL __hmul_rn(PROBE_S a, PROBE_S b) { return a * b; }
PROBE_SMALL __hdiv(PROBE_S a, PROBE_S b) { return a / b; }
// The product is exact in double; the sum is rounded there only where that cannot change the second rounding.
PROBE_SMALL __hfma(PROBE_S a, PROBE_S b, PROBE_S c) { return PROBE_S(std::fma((double)(float)a, (double)(float)b, (double)(float)c)); }
PROBE_SMALL __hneg(PROBE_S a) { return -a; }
PROBE_SMALL __habs(PROBE_S a) { return PROBE_S::of(a.bits & 0x7fff); }
template <class F> inline bool __hisnan(PROBE_S a) { return (a.bits & 0x7fff) > F::infinity; }
template <class F> inline int __hisinf(PROBE_S a) { return (a.bits & 0x7fff) != F::infinity ? 0 : a.bits >> 15 ? -1 : 1; }
PROBE_SMALL __hmax(PROBE_S a, PROBE_S b) { return __hisnan(a) ? b : __hisnan(b) ? a : (float)a > (float)b || (a == b && !(a.bits >> 15)) ? a : b; }
PROBE_SMALL __hmin(PROBE_S a, PROBE_S b) { return __hisnan(a) ? b : __hisnan(b) ? a : (float)a < (float)b || (a == b && a.bits >> 15) ? a : b; }
PROBE_SMALL __hmax_nan(PROBE_S a, PROBE_S b) { return __hisnan(a) || __hisnan(b) ? PROBE_S::of(F::quiet_nan) : __hmax(a, b); }
PROBE_SMALL __hmin_nan(PROBE_S a, PROBE_S b) { return __hisnan(a) || __hisnan(b) ? PROBE_S::of(F::quiet_nan) : __hmin(a, b); }
PROBE_SMALL probe_saturated(PROBE_S a) { return __hisnan(a) ? PROBE_S(0.0f) : __hmin(__hmax(a, PROBE_S(0.0f)), PROBE_S(1.0f)); }
PROBE_SMALL __hadd_sat(PROBE_S a, PROBE_S b) { return probe_saturated(a + b); }
PROBE_SMALL __hsub_sat(PROBE_S a, PROBE_S b) { return probe_saturated(a - b); }
PROBE_SMALL __hmul_sat(PROBE_S a, PROBE_S b) { return probe_saturated(a * b); }
PROBE_SMALL __hfma_sat(PROBE_S a, PROBE_S b, PROBE_S c) { return probe_saturated(__hfma(a, b, c)); }
PROBE_SMALL __hfma_relu(PROBE_S a, PROBE_S b, PROBE_S c) { return __hmax_nan(__hfma(a, b, c), PROBE_S(0.0f)); }

#define PROBE_COMPARE(name, op)                                                                             \
    template <class F> inline bool __h##name(PROBE_S a, PROBE_S b) { return a op b; }                       \
    template <class F> inline bool __h##name##u(PROBE_S a, PROBE_S b) { return __hisnan(a) || __hisnan(b) || a op b; } \
    template <class F> inline PROBE_P __h##name##2(PROBE_P a, PROBE_P b) {                                  \
        return {PROBE_S(a.x op b.x ? 1.0f : 0.0f), PROBE_S(a.y op b.y ? 1.0f : 0.0f)};                      \
    }                                                                                                       \
    template <class F> inline unsigned __h##name##2_mask(PROBE_P a, PROBE_P b) {                            \
        return (a.x op b.x ? 0xffffu : 0u) | (a.y op b.y ? 0xffff0000u : 0u);                               \
    }                                                                                                       \
    template <class F> inline bool __hb##name##2(PROBE_P a, PROBE_P b) { return a.x op b.x && a.y op b.y; }
PROBE_COMPARE(eq, ==)
PROBE_COMPARE(ne, !=)
PROBE_COMPARE(lt, <)
PROBE_COMPARE(le, <=)
PROBE_COMPARE(gt, >)
PROBE_COMPARE(ge, >=)
#undef PROBE_COMPARE

#define PROBE_BOTH2(name) \
    PROBE_PAIR name##2(PROBE_P a, PROBE_P b) { return {name(a.x, b.x), name(a.y, b.y)}; }
PROBE_BOTH2(__hadd)
PROBE_BOTH2(__hsub)
PROBE_BOTH2(__hmul)
PROBE_BOTH2(__hmax)
PROBE_BOTH2(__hmin)
#undef PROBE_BOTH2
PROBE_PAIR __hadd2_rn(PROBE_P a, PROBE_P b) { return a + b; }
PROBE_PAIR __hsub2_rn(PROBE_P a, PROBE_P b) { return a - b; }
PROBE_PAIR __hmul2_rn(PROBE_P a, PROBE_P b) { return a * b; }
PROBE_PAIR __hmax2_nan(PROBE_P a, PROBE_P b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
PROBE_PAIR __hmin2_nan(PROBE_P a, PROBE_P b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }
PROBE_PAIR __hadd2_sat(PROBE_P a, PROBE_P b) { return {__hadd_sat(a.x, b.x), __hadd_sat(a.y, b.y)}; }
PROBE_PAIR __hmul2_sat(PROBE_P a, PROBE_P b) { return {__hmul_sat(a.x, b.x), __hmul_sat(a.y, b.y)}; }
PROBE_PAIR __h2div(PROBE_P a, PROBE_P b) { return a / b; }
PROBE_PAIR __hfma2(PROBE_P a, PROBE_P b, PROBE_P c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
PROBE_PAIR __hfma2_sat(PROBE_P a, PROBE_P b, PROBE_P c) { return {__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y)}; }
PROBE_PAIR __hfma2_relu(PROBE_P a, PROBE_P b, PROBE_P c) { return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)}; }
PROBE_PAIR __hneg2(PROBE_P a) { return -a; }
PROBE_PAIR __habs2(PROBE_P a) { return {__habs(a.x), __habs(a.y)}; }
PROBE_PAIR __hisnan2(PROBE_P a) { return {PROBE_S(__hisnan(a.x) ? 1.0f : 0.0f), PROBE_S(__hisnan(a.y) ? 1.0f : 0.0f)}; }

#define PROBE_FUNCTION(name, expression)                                        \
    PROBE_SMALL h##name(PROBE_S a) { const float v = a; return PROBE_S(expression); } \
    PROBE_PAIR h2##name(PROBE_P a) { return {h##name(a.x), h##name(a.y)}; }
PROBE_FUNCTION(exp, expf(v))
PROBE_FUNCTION(exp2, exp2f(v))
PROBE_FUNCTION(exp10, (float)::pow(10.0, (double)v))
PROBE_FUNCTION(log, logf(v))
PROBE_FUNCTION(log2, log2f(v))
PROBE_FUNCTION(log10, log10f(v))
PROBE_FUNCTION(sqrt, sqrtf(v))
PROBE_FUNCTION(rsqrt, (float)(1.0 / ::sqrt((double)v)))
PROBE_FUNCTION(rcp, 1.0f / v)
PROBE_FUNCTION(sin, sinf(v))
PROBE_FUNCTION(cos, cosf(v))
PROBE_FUNCTION(tanh, tanhf(v))
PROBE_FUNCTION(tanh_approx, tanhf(v))
PROBE_FUNCTION(ceil, ceilf(v))
PROBE_FUNCTION(floor, floorf(v))
PROBE_FUNCTION(rint, nearbyintf(v))
PROBE_FUNCTION(trunc, truncf(v))
#undef PROBE_FUNCTION
#undef PROBE_SMALL
#undef PROBE_PAIR
#undef PROBE_S
#undef PROBE_P
