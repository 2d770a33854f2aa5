// cuda::barrier, and cuda::memcpy_async, whose copies arrive with their thread at the barrier, or as its pipeline waits.
#pragma once

#include "cuda_atomic.hpp"

namespace cuda {

template <::std::size_t Alignment>
struct aligned_size_t {
    ::std::size_t value;
    constexpr explicit aligned_size_t(::std::size_t value) : value(value) {}
    constexpr operator ::std::size_t() const { return value; }
};

template <thread_scope Scope, class = void>
class barrier {
    unsigned expected, arrived, phase;

public:
    using arrival_token = unsigned;
    barrier() = default;
    barrier(::std::ptrdiff_t count) : expected((unsigned)count), arrived(0), phase(0) {}

    PROBE_INLINE arrival_token arrive(::std::ptrdiff_t by = 1) {
        probe_emulation::wait_for_all_copies();
        probe_emulation::fence();
        const unsigned now = probe_emulation::atomically(&phase, [](unsigned old) { return old; });
        if (atomicAdd(&arrived, (unsigned)by) + (unsigned)by == atomicAdd(&expected, 0u)) {
            atomicExch(&arrived, 0u);
            probe_emulation::fence();
            atomicAdd(&phase, 1u);
        }
        return now;
    }
    PROBE_INLINE void wait(arrival_token token) {
        while (atomicAdd(&phase, 0u) == token) {}
    }
    PROBE_INLINE void arrive_and_wait() { wait(arrive()); }
    PROBE_INLINE void arrive_and_drop() {
        probe_emulation::wait_for_all_copies();
        atomicSub(&expected, 1u);
        if (atomicAdd(&arrived, 0u) == atomicAdd(&expected, 0u)) atomicExch(&arrived, 0u), atomicAdd(&phase, 1u);
    }
    friend PROBE_INLINE void init(barrier* self, ::std::ptrdiff_t count) { *self = barrier(count); }
};

namespace probe {
// Every `count`th piece of what is copied, from number `first` on.
PROBE_INLINE void copy_pieces(void* to, const void* from, ::std::size_t bytes, unsigned first, unsigned count) {
    using probe_emulation::largest_copy;
    for (::std::size_t at = largest_copy * first; at < bytes; at += largest_copy * count) {
        const unsigned size = (unsigned)::std::min<::std::size_t>(largest_copy, bytes - at);
        probe_emulation::copy_later((char*)to + at, (const char*)from + at, size, size);
    }
}
}  // namespace probe

template <class Group, class Sync>
PROBE_INLINE void memcpy_async(const Group& group, void* to, const void* from, ::std::size_t bytes, Sync&) {
    probe::copy_pieces(to, from, bytes, (unsigned)group.thread_rank(), (unsigned)group.size());
}
template <class Sync>
PROBE_INLINE void memcpy_async(void* to, const void* from, ::std::size_t bytes, Sync&) {
    probe::copy_pieces(to, from, bytes, 0, 1);
}

}  // namespace cuda
