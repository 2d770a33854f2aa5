// cuda::atomic and cuda::atomic_ref. Scopes say nothing here; an order other than relaxed is a fence beside the operation.
#pragma once

#include "atomics.hpp"

namespace cuda {

enum thread_scope { thread_scope_system, thread_scope_device, thread_scope_block, thread_scope_thread };
namespace std {
using namespace ::std;
}
using ::std::memory_order;
using ::std::memory_order_acq_rel;
using ::std::memory_order_acquire;
using ::std::memory_order_consume;
using ::std::memory_order_relaxed;
using ::std::memory_order_release;
using ::std::memory_order_seq_cst;

PROBE_INLINE void atomic_thread_fence(memory_order, thread_scope = thread_scope_system) { probe_emulation::fence(); }

namespace probe {

constexpr memory_order strict = ::std::memory_order_seq_cst;

template <class Self, class T>
class Operations {
    T* at() const { return static_cast<const Self*>(this)->address(); }
    template <class Change>
    PROBE_INLINE T change(memory_order order, Change how) const {
        if (order != ::std::memory_order_relaxed) probe_emulation::fence();
        return probe_emulation::atomically(at(), how);
    }

public:
    PROBE_INLINE T load(memory_order order = strict) const { return change(order, [](T old) { return old; }); }
    PROBE_INLINE void store(T v, memory_order order = strict) const {
        if (order != ::std::memory_order_relaxed) probe_emulation::fence();
        probe_emulation::atomic_access(at(), sizeof v, false);
        probe_emulation::copy_unseen(at(), &v, sizeof v);
    }
    PROBE_INLINE T exchange(T v, memory_order order = strict) const { return change(order, [&](T) { return v; }); }
    PROBE_INLINE T fetch_add(T v, memory_order order = strict) const { return change(order, [&](T old) { return T(old + v); }); }
    PROBE_INLINE T fetch_sub(T v, memory_order order = strict) const { return change(order, [&](T old) { return T(old - v); }); }
    PROBE_INLINE T fetch_and(T v, memory_order order = strict) const { return change(order, [&](T old) { return T(old & v); }); }
    PROBE_INLINE T fetch_or(T v, memory_order order = strict) const { return change(order, [&](T old) { return T(old | v); }); }
    PROBE_INLINE T fetch_xor(T v, memory_order order = strict) const { return change(order, [&](T old) { return T(old ^ v); }); }
    PROBE_INLINE T fetch_min(T v, memory_order order = strict) const { return change(order, [&](T old) { return v < old ? v : old; }); }
    PROBE_INLINE T fetch_max(T v, memory_order order = strict) const { return change(order, [&](T old) { return old < v ? v : old; }); }
    PROBE_INLINE bool compare_exchange_strong(T& expected, T v, memory_order order = strict, memory_order = strict) const {
        const T wanted = expected;
        expected = change(order, [&](T old) { return __builtin_memcmp(&old, &wanted, sizeof old) == 0 ? v : old; });
        return __builtin_memcmp(&expected, &wanted, sizeof wanted) == 0;
    }
    PROBE_INLINE bool compare_exchange_weak(T& expected, T v, memory_order order = strict, memory_order = strict) const {
        return compare_exchange_strong(expected, v, order);
    }
    PROBE_INLINE void wait(T old, memory_order order = strict) const {
        for (T now = load(order); __builtin_memcmp(&now, &old, sizeof now) == 0;) now = load(order);
    }
    PROBE_INLINE void notify_one() const {}
    PROBE_INLINE void notify_all() const {}
    PROBE_INLINE operator T() const { return load(); }
    PROBE_INLINE T operator=(T v) const { return store(v), v; }
    PROBE_INLINE T operator+=(T v) const { return fetch_add(v) + v; }
    PROBE_INLINE T operator-=(T v) const { return fetch_sub(v) - v; }
    PROBE_INLINE T operator++() const { return fetch_add(T(1)) + T(1); }
    PROBE_INLINE T operator--() const { return fetch_sub(T(1)) - T(1); }
    PROBE_INLINE T operator++(int) const { return fetch_add(T(1)); }
    PROBE_INLINE T operator--(int) const { return fetch_sub(T(1)); }
};

}  // namespace probe

template <class T, thread_scope Scope = thread_scope_system>
class atomic_ref : public probe::Operations<atomic_ref<T, Scope>, T> {
    T* value;

public:
    explicit atomic_ref(T& value) : value(&value) {}
    T* address() const { return value; }
    using probe::Operations<atomic_ref, T>::operator=;
};

template <class T, thread_scope Scope = thread_scope_system>
class atomic : public probe::Operations<atomic<T, Scope>, T> {
    mutable T value;

public:
    atomic() = default;
    constexpr atomic(T value) : value(value) {}
    T* address() const { return &value; }
    using probe::Operations<atomic, T>::operator=;
};

}  // namespace cuda
