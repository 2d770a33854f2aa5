// Atomic functions: threads change only at waits, so a plain read and write is one step. A thread whose atomic changed
// nothing is taken to be waiting for another, and lets it run.
#pragma once

#include "warp.hpp"

namespace probe_emulation {

template <class T, class Change>
PROBE_INLINE T atomically(T* address, Change change) {
    atomic_access((const void*)address, sizeof(T));
    T old;
    copy_unseen(&old, (const void*)address, sizeof old);
    const T now = change(old);
    if (__builtin_memcmp(&now, &old, sizeof now) == 0) yield();
    else copy_unseen((void*)address, &now, sizeof now);
    return old;
}

template <class T>
struct identity {
    using type = T;
};
template <class T>
using same = typename identity<T>::type;

}  // namespace probe_emulation

#define PROBE_ATOMIC(name, expression)                                                                     \
    template <class T>                                                                                     \
    PROBE_INLINE T name(T* address, probe_emulation::same<T> value) {                                      \
        return probe_emulation::atomically(address, [&](T old) -> T { return (T)(expression); });          \
    }                                                                                                      \
    template <class T>                                                                                     \
    PROBE_INLINE T name##_block(T* address, probe_emulation::same<T> value) { return name(address, value); } \
    template <class T>                                                                                     \
    PROBE_INLINE T name##_system(T* address, probe_emulation::same<T> value) { return name(address, value); }
PROBE_ATOMIC(atomicAdd, old + value)
PROBE_ATOMIC(atomicSub, old - value)
PROBE_ATOMIC(atomicMin, value < old ? value : old)
PROBE_ATOMIC(atomicMax, old < value ? value : old)
PROBE_ATOMIC(atomicAnd, old & value)
PROBE_ATOMIC(atomicOr, old | value)
PROBE_ATOMIC(atomicXor, old ^ value)
PROBE_ATOMIC(atomicExch, ((void)old, value))
PROBE_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
PROBE_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef PROBE_ATOMIC

template <class T>
PROBE_INLINE T atomicCAS(T* address, probe_emulation::same<T> expected, probe_emulation::same<T> value) {
    return probe_emulation::atomically(
        address, [&](T old) -> T { return __builtin_memcmp(&old, &expected, sizeof old) == 0 ? value : old; });
}
template <class T>
PROBE_INLINE T atomicCAS_block(T* address, probe_emulation::same<T> expected, probe_emulation::same<T> value) {
    return atomicCAS(address, expected, value);
}
template <class T>
PROBE_INLINE T atomicCAS_system(T* address, probe_emulation::same<T> expected, probe_emulation::same<T> value) {
    return atomicCAS(address, expected, value);
}

// Element by element.
PROBE_INLINE float2 atomicAdd(float2* address, float2 v) { return {atomicAdd(&address->x, v.x), atomicAdd(&address->y, v.y)}; }
PROBE_INLINE float4 atomicAdd(float4* address, float4 v) {
    return {atomicAdd(&address->x, v.x), atomicAdd(&address->y, v.y), atomicAdd(&address->z, v.z), atomicAdd(&address->w, v.w)};
}
