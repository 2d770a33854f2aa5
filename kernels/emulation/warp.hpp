// Barriers, shuffles, votes, matches and reductions of a warp, and the exchanges that matrix instructions are built on.
#pragma once

#include <type_traits>

#include "intrinsics.hpp"
#include "runtime.hpp"

namespace probe_emulation {

// Copies whose size the compiler does not know become calls, which the checks must be told of.
PROBE_INLINE void* copy(void* to, const void* from, std::size_t bytes) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    touch(from, bytes, false), touch(to, bytes, true);
#endif
    return __builtin_memmove(to, from, bytes);
}
PROBE_INLINE void* fill(void* to, int byte, std::size_t bytes) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    touch(to, bytes, true);
#endif
    return __builtin_memset(to, byte, bytes);
}

enum Operation : unsigned {
    sync_warp = 1, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, match_any, match_all, reduce, exchange,
};

template <class T>
PROBE_INLINE T value_of(const unsigned char* values, unsigned lane) {
    T value;
    __builtin_memcpy(&value, values + lane * sizeof(T), sizeof value);
    return value;
}

template <class T>
PROBE_INLINE T shuffled(unsigned mask, Operation operation, const T& value, unsigned source, bool own) {
    static_assert(sizeof(T) <= largest_value, "too large for a shuffle");
    unsigned participants;
    const unsigned char* values = meet(mask, operation, &value, sizeof value, &participants, false);
    if (own) return value;
    if (!(participants >> source & 1u)) bad_shuffle(source);
    return value_of<T>(values, source);
}

// What every lane of a warp handed over.
template <class T>
struct Exchanged {
    T values[warp_size];
    const T& operator[](unsigned lane) const { return values[lane]; }
};

// Every lane hands over a value and gets those of all 32 lanes: what mma.sync and ldmatrix are emulated with.
template <class T>
PROBE_INLINE Exchanged<T> warp_exchange(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= largest_value);
    unsigned participants;
    Exchanged<T> all;
    __builtin_memcpy(&all, meet(0xffffffffu, exchange, &value, sizeof value, &participants, false), sizeof all);
    return all;
}

// The same for the four warps of a warpgroup (wgmma): index 0..127, the rank in the group.
template <class T>
struct GroupExchanged {
    T values[128];
    const T& operator[](unsigned rank) const { return values[rank]; }
};

PROBE_INLINE void warpgroup_barrier() { barrier(16 + thread_rank() / 128, 128); }

template <class T>
PROBE_INLINE GroupExchanged<T> warpgroup_exchange(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    GroupExchanged<T> all;
    unsigned char* buffer = warpgroup_buffer(sizeof all);
    __builtin_memcpy(buffer + thread_rank() % 128 * sizeof(T), &value, sizeof value);
    warpgroup_barrier();
    __builtin_memcpy(&all, buffer, sizeof all);
    warpgroup_barrier();  // nobody writes the next values before all have read these
    return all;
}

}  // namespace probe_emulation

constexpr int warpSize = 32;

// Macros, so that two calls in two lines stay two calls.
#define PROBE_SYNC(reduction, predicate) \
    probe_emulation::barrier(0, 0, probe_emulation::Reduction::reduction, predicate, __LINE__)
#define __syncthreads() ((void)PROBE_SYNC(none, 0))
#define __syncthreads_count(predicate) PROBE_SYNC(count, predicate)
#define __syncthreads_and(predicate) PROBE_SYNC(all, (predicate) != 0)
#define __syncthreads_or(predicate) PROBE_SYNC(any, (predicate) != 0)
PROBE_INLINE void __barrier_sync(unsigned id) { probe_emulation::barrier(id, 0); }
PROBE_INLINE void __barrier_sync_count(unsigned id, unsigned threads) { probe_emulation::barrier(id, threads); }
PROBE_INLINE void __syncwarp(unsigned mask = 0xffffffffu) {
    unsigned participants;
    probe_emulation::meet(mask, probe_emulation::sync_warp, nullptr, 0, &participants, true);
}
PROBE_INLINE unsigned __activemask() { return probe_emulation::active_mask(); }
PROBE_INLINE unsigned __lanemask_lt() { return (1u << probe_emulation::lane()) - 1u; }

// As PTX's shfl: a source outside of the lane's segment of `width` lanes gives the lane's own value.
template <class T>
PROBE_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned self = probe_emulation::lane(), from = ((unsigned)source & (unsigned)(width - 1)) | (self & ~(unsigned)(width - 1));
    return probe_emulation::shuffled(mask, probe_emulation::shuffle, value, from, false);
}
template <class T>
PROBE_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned self = probe_emulation::lane();
    const bool own = (self & (unsigned)(width - 1)) < delta;
    return probe_emulation::shuffled(mask, probe_emulation::shuffle_up, value, self - delta, own);
}
template <class T>
PROBE_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned self = probe_emulation::lane();
    const bool own = (self & (unsigned)(width - 1)) + delta >= (unsigned)width;
    return probe_emulation::shuffled(mask, probe_emulation::shuffle_down, value, self + delta, own);
}
template <class T>
PROBE_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const unsigned self = probe_emulation::lane(), from = self ^ (unsigned)lanes;
    const bool own = from > (self | (unsigned)(width - 1)) || from >= 32;
    return probe_emulation::shuffled(mask, probe_emulation::shuffle_xor, value, from, own);
}

PROBE_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned participants, votes = 0;
    const int mine = predicate != 0;
    const unsigned char* all = probe_emulation::meet(mask, probe_emulation::ballot, &mine, sizeof mine, &participants, false);
    for (unsigned lane = 0; lane < 32; ++lane)
        if (participants >> lane & 1u) votes |= (unsigned)probe_emulation::value_of<int>(all, lane) << lane;
    return votes;
}
PROBE_INLINE int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
PROBE_INLINE int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
PROBE_INLINE unsigned __match_any_sync(unsigned mask, T value) {
    unsigned participants, same = 0;
    const unsigned char* all = probe_emulation::meet(mask, probe_emulation::match_any, &value, sizeof value, &participants, false);
    for (unsigned lane = 0; lane < 32; ++lane)
        if (participants >> lane & 1u && __builtin_memcmp(all + lane * sizeof value, &value, sizeof value) == 0) same |= 1u << lane;
    return same;
}
template <class T>
PROBE_INLINE unsigned __match_all_sync(unsigned mask, T value, int* all_same) {
    unsigned participants;
    const unsigned char* all = probe_emulation::meet(mask, probe_emulation::match_all, &value, sizeof value, &participants, false);
    *all_same = 1;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (participants >> lane & 1u && __builtin_memcmp(all + lane * sizeof value, &value, sizeof value) != 0) *all_same = 0;
    return *all_same ? participants : 0;
}

#define PROBE_REDUCE(name, T, expression)                                                                            \
    PROBE_INLINE T __reduce_##name##_sync(unsigned mask, T value) {                                                  \
        unsigned participants;                                                                                       \
        const unsigned char* all =                                                                                   \
            probe_emulation::meet(mask, probe_emulation::reduce, &value, sizeof value, &participants, false);        \
        participants &= ~(1u << probe_emulation::lane());                                                            \
        T a = value;                                                                                                 \
        for (unsigned lane = 0; lane < 32; ++lane)                                                                   \
            if (participants >> lane & 1u) {                                                                         \
                const T b = probe_emulation::value_of<T>(all, lane);                                                 \
                a = expression;                                                                                      \
            }                                                                                                        \
        return a;                                                                                                    \
    }
PROBE_REDUCE(add, unsigned, a + b)
PROBE_REDUCE(add, int, (int)((unsigned)a + (unsigned)b))
PROBE_REDUCE(min, unsigned, a < b ? a : b)
PROBE_REDUCE(min, int, a < b ? a : b)
PROBE_REDUCE(max, unsigned, a > b ? a : b)
PROBE_REDUCE(max, int, a > b ? a : b)
PROBE_REDUCE(and, unsigned, a & b)
PROBE_REDUCE(or, unsigned, a | b)
PROBE_REDUCE(xor, unsigned, a ^ b)
#undef PROBE_REDUCE

PROBE_INLINE void __threadfence() { probe_emulation::fence(); }
PROBE_INLINE void __threadfence_block() { probe_emulation::fence(); }
PROBE_INLINE void __threadfence_system() { probe_emulation::fence(); }
PROBE_INLINE void __nanosleep(unsigned) { probe_emulation::yield(); }
PROBE_INLINE void __trap() { probe_emulation::trap(); }
PROBE_INLINE void __brkpt() { probe_emulation::trap(); }

PROBE_INLINE void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes, std::size_t zeros = 0) {
    if (bytes != 4 && bytes != 8 && bytes != 16)
        probe_emulation::fail_assertion("4, 8 or 16 bytes", "__pipeline_memcpy_async", 0);
    probe_emulation::require_alignment(to, (unsigned)bytes), probe_emulation::require_alignment(from, (unsigned)bytes);
    probe_emulation::copy_later(to, from, (unsigned)bytes, (unsigned)(bytes - zeros));
}
PROBE_INLINE void __pipeline_commit() { probe_emulation::commit_copies(); }
PROBE_INLINE void __pipeline_wait_prior(std::size_t prior) { probe_emulation::wait_for_copies(prior); }
