// The types and conversions of cuda_fp8.h; conversions of the types saturate, as CUDA's do.
#pragma once

#include "eight_bits.hpp"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

inline __nv_fp8_storage_t __nv_cvt_double_to_fp8(double v, __nv_saturation_t how, __nv_fp8_interpretation_t kind) {
    const bool finite = how == __NV_SATFINITE;
    return kind == __NV_E4M3 ? probe_emulation::E4M3::narrow(v, finite) : probe_emulation::E5M2::narrow(v, finite);
}
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float v, __nv_saturation_t how, __nv_fp8_interpretation_t kind) {
    return __nv_cvt_double_to_fp8((double)v, how, kind);
}
inline __nv_fp8_storage_t __nv_cvt_halfraw_to_fp8(__half_raw v, __nv_saturation_t how, __nv_fp8_interpretation_t kind) {
    return __nv_cvt_float_to_fp8(__half(v), how, kind);
}
inline __nv_fp8_storage_t __nv_cvt_bfloat16raw_to_fp8(__nv_bfloat16_raw v, __nv_saturation_t how, __nv_fp8_interpretation_t kind) {
    return __nv_cvt_float_to_fp8(__nv_bfloat16(v), how, kind);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t how, __nv_fp8_interpretation_t kind) {
    return (__nv_fp8x2_storage_t)(__nv_cvt_float_to_fp8(v.x, how, kind) | __nv_cvt_float_to_fp8(v.y, how, kind) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t v, __nv_fp8_interpretation_t kind) {
    return __half(kind == __NV_E4M3 ? probe_emulation::E4M3::widen(v) : probe_emulation::E5M2::widen(v));
}
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t kind) {
    const __half_raw x = __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)v, kind), y = __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)(v >> 8), kind);
    return {x.x, y.x};
}

namespace probe_emulation {

template <class Format>
struct Eight {
    __nv_fp8_storage_t __x;

    Eight() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    explicit Eight(T v) : __x(Format::narrow((double)v, true)) {}
    template <class F>
    explicit Eight(Small<F> v) : __x(Format::narrow((double)(float)v, true)) {}
    explicit operator float() const { return Format::widen(__x); }
    explicit operator double() const { return Format::widen(__x); }
    explicit operator __half() const { return __half(Format::widen(__x)); }
    explicit operator __nv_bfloat16() const { return __nv_bfloat16(Format::widen(__x)); }
    explicit operator int() const { return (int)Format::widen(__x); }
    explicit operator bool() const { return (__x & 0x7f) != 0; }
};

template <class Format>
struct alignas(2) EightPair {
    __nv_fp8x2_storage_t __x;

    EightPair() = default;
    explicit EightPair(float2 v) : __x((unsigned short)(Format::narrow(v.x, true) | Format::narrow(v.y, true) << 8)) {}
    template <class F>
    explicit EightPair(Pair<F> v) : EightPair(float2{v.x, v.y}) {}
    explicit operator float2() const { return {Format::widen((unsigned char)__x), Format::widen((unsigned char)(__x >> 8))}; }
    explicit operator __half2() const { return {__half(Format::widen((unsigned char)__x)), __half(Format::widen((unsigned char)(__x >> 8)))}; }
};

template <class Format>
struct alignas(4) EightFour {
    __nv_fp8x4_storage_t __x;

    EightFour() = default;
    explicit EightFour(float4 v)
        : __x((unsigned)Format::narrow(v.x, true) | (unsigned)Format::narrow(v.y, true) << 8 |
              (unsigned)Format::narrow(v.z, true) << 16 | (unsigned)Format::narrow(v.w, true) << 24) {}
    explicit EightFour(__half2 a, __half2 b) : EightFour(float4{a.x, a.y, b.x, b.y}) {}
    explicit operator float4() const {
        const auto at = [this](int i) { return Format::widen((unsigned char)(__x >> 8 * i)); };
        return {at(0), at(1), at(2), at(3)};
    }
};

}  // namespace probe_emulation

using __nv_fp8_e4m3 = probe_emulation::Eight<probe_emulation::E4M3>;
using __nv_fp8_e5m2 = probe_emulation::Eight<probe_emulation::E5M2>;
using __nv_fp8x2_e4m3 = probe_emulation::EightPair<probe_emulation::E4M3>;
using __nv_fp8x2_e5m2 = probe_emulation::EightPair<probe_emulation::E5M2>;
using __nv_fp8x4_e4m3 = probe_emulation::EightFour<probe_emulation::E4M3>;
using __nv_fp8x4_e5m2 = probe_emulation::EightFour<probe_emulation::E5M2>;
