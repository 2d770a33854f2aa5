// CUDA C++ for g++: what comes before a `.cu` file. The language's words, which are macros, follow in words.hpp, after
// the headers of the library that the file includes.
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
#include "host.hpp"
#include "intrinsics.hpp"
#include "ptx.hpp"
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
