// CUDA C++ for g++: included before a `.cu` file, it gives the language's words and functions their meaning on the CPU.
// The headers of the library come first, because `alignas` becomes a macro below.
#pragma once

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

#include "atomics.hpp"
#include "intrinsics.hpp"
#include "runtime.hpp"
#include "small_floats.hpp"
#include "vectors.hpp"
#include "warp.hpp"

#include <time.h>

PROBE_INLINE long long clock64() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}
PROBE_INLINE unsigned long long __globaltimer() { return (unsigned long long)clock64(); }

namespace probe_emulation {

template <class T>
constexpr Kind kind_of() {
    if constexpr (std::is_pointer_v<T>) return pointer;
    else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) return integer;
    else if constexpr (std::is_floating_point_v<T> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) return real;
    else return other;
}

template <class... P>
struct Call {
    static constexpr Parameter parameters[sizeof...(P) + 1] = {Parameter{sizeof(P), kind_of<P>()}..., Parameter{0, other}};

    template <std::size_t... I>
    static void call(void (*kernel)(P...), void* const* arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<std::remove_cv_t<P>>*>(arguments[I])...);
    }
};

template <auto kernel>
struct Enlisted;

template <class... P, void (*kernel)(P...)>
struct Enlisted<kernel> {
    explicit Enlisted(const char* name) {
        enlist({name, [](void* const* arguments) { Call<P...>::call(kernel, arguments, std::index_sequence_for<P...>{}); },
                Call<P...>::parameters, sizeof...(P)});
    }
};

}  // namespace probe_emulation

#define PROBE_EMULATION 1
#define __CUDACC__ 1
#define __CUDA__ 1
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 8

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __shared__ thread_local  // one operating system thread runs a block: its variables are the block's
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(...) __attribute__((aligned(__VA_ARGS__)))
#define __builtin_align__(...) __attribute__((aligned(__VA_ARGS__)))
#define alignas(...) __attribute__((aligned(__VA_ARGS__)))  // where CUDA takes it and C++ does not

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")
#define CUDART_PI_F 3.141592654f
#define CUDART_PI 3.1415926535897931e+0

#define memcpy(to, from, bytes) probe_emulation::copy(to, from, bytes)
#define memmove(to, from, bytes) probe_emulation::copy(to, from, bytes)
#define memset(to, byte, bytes) probe_emulation::fill(to, byte, bytes)
#define printf(...) probe_emulation::print(__VA_ARGS__)
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) ((condition) ? (void)0 : probe_emulation::fail_assertion(#condition, __FILE__, __LINE__))
#endif
#define clock() ((int)clock64())
