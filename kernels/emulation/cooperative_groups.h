// The groups of CUDA that one block can hold, and the grid, whose blocks meet as far as `grid.cpp` says.
#pragma once

#include "warp.hpp"

namespace cooperative_groups {

class thread_block {
public:
    PROBE_INLINE static void sync() { probe_emulation::barrier(0, 0); }
    static unsigned thread_rank() { return probe_emulation::thread_rank(); }
    static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned size() { return num_threads(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 dim_threads() { return blockDim; }
    static dim3 group_dim() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

class grid_group {
public:
    PROBE_INLINE static void sync() { probe_emulation::grid_barrier(); }
    static bool is_valid() { return true; }
    static unsigned long long block_rank() { return (blockIdx.z * (unsigned long long)gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x; }
    static unsigned long long num_blocks() { return (unsigned long long)gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long thread_rank() { return block_rank() * thread_block::num_threads() + thread_block::thread_rank(); }
    static unsigned long long num_threads() { return num_blocks() * thread_block::num_threads(); }
    static unsigned long long size() { return num_threads(); }
    static dim3 group_dim() { return gridDim; }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 block_index() { return blockIdx; }
};
inline grid_group this_grid() { return {}; }

// Some lanes of a warp, by their mask.
class coalesced_group {
    unsigned mask;

protected:
    unsigned lane_of(unsigned rank) const {
        unsigned left = mask;
        while (rank--) left &= left - 1;
        return (unsigned)__ffs((int)left) - 1u;
    }
    unsigned ranks_of(unsigned lanes) const {  // bits by lane as bits by rank
        unsigned ranks = 0;
        for (unsigned rank = 0; rank < num_threads(); ++rank) ranks |= (lanes >> lane_of(rank) & 1u) << rank;
        return ranks;
    }

public:
    explicit coalesced_group(unsigned mask) : mask(mask) {}
    PROBE_INLINE void sync() const { __syncwarp(mask); }
    unsigned thread_rank() const { return (unsigned)__popc(mask & __lanemask_lt()); }
    unsigned num_threads() const { return (unsigned)__popc(mask); }
    unsigned size() const { return num_threads(); }
    unsigned meta_group_rank() const { return 0; }
    unsigned meta_group_size() const { return 1; }
    template <class T> PROBE_INLINE T shfl(T v, unsigned rank) const { return __shfl_sync(mask, v, (int)lane_of(rank % num_threads())); }
    template <class T> PROBE_INLINE T shfl_up(T v, unsigned delta) const {
        return __shfl_sync(mask, v, (int)lane_of(thread_rank() < delta ? thread_rank() : thread_rank() - delta));
    }
    template <class T> PROBE_INLINE T shfl_down(T v, unsigned delta) const {
        return __shfl_sync(mask, v, (int)lane_of(thread_rank() + delta < num_threads() ? thread_rank() + delta : thread_rank()));
    }
    template <class T> PROBE_INLINE T shfl_xor(T v, unsigned ranks) const {
        return __shfl_sync(mask, v, (int)lane_of((thread_rank() ^ ranks) < num_threads() ? thread_rank() ^ ranks : thread_rank()));
    }
    PROBE_INLINE unsigned ballot(int p) const { return ranks_of(__ballot_sync(mask, p)); }
    PROBE_INLINE int any(int p) const { return __any_sync(mask, p); }
    PROBE_INLINE int all(int p) const { return __all_sync(mask, p); }
    template <class T> PROBE_INLINE unsigned match_any(T v) const { return ranks_of(__match_any_sync(mask, v)); }
    template <class T> PROBE_INLINE unsigned match_all(T v, int& same) const { return ranks_of(__match_all_sync(mask, v, &same)); }
    unsigned probe_mask() const { return mask; }
};
PROBE_INLINE coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }

template <unsigned Size, class Parent = thread_block>
class thread_block_tile {
    static_assert(Size <= 32 && (Size & (Size - 1)) == 0, "tiles of 1, 2, 4 ... 32 threads are emulated");
    static unsigned base() { return probe_emulation::lane() & ~(Size - 1); }

public:
    static unsigned probe_mask() { return (Size == 32 ? 0xffffffffu : (1u << Size % 32) - 1u) << base(); }
    PROBE_INLINE static void sync() { __syncwarp(probe_mask()); }
    static unsigned thread_rank() { return probe_emulation::lane() & (Size - 1); }
    static constexpr unsigned num_threads() { return Size; }
    static constexpr unsigned size() { return Size; }
    static unsigned meta_group_rank() { return Parent::thread_rank() / Size; }
    static unsigned meta_group_size() { return (Parent::num_threads() + Size - 1) / Size; }
    template <class T> PROBE_INLINE static T shfl(T v, int source) { return __shfl_sync(probe_mask(), v, source, Size); }
    template <class T> PROBE_INLINE static T shfl_up(T v, unsigned delta) { return __shfl_up_sync(probe_mask(), v, delta, Size); }
    template <class T> PROBE_INLINE static T shfl_down(T v, unsigned delta) { return __shfl_down_sync(probe_mask(), v, delta, Size); }
    template <class T> PROBE_INLINE static T shfl_xor(T v, int lanes) { return __shfl_xor_sync(probe_mask(), v, lanes, Size); }
    PROBE_INLINE static unsigned ballot(int p) { return __ballot_sync(probe_mask(), p) >> base(); }
    PROBE_INLINE static int any(int p) { return __any_sync(probe_mask(), p); }
    PROBE_INLINE static int all(int p) { return __all_sync(probe_mask(), p); }
    template <class T> PROBE_INLINE static unsigned match_any(T v) { return __match_any_sync(probe_mask(), v) >> base(); }
    template <class T> PROBE_INLINE static unsigned match_all(T v, int& same) { return __match_all_sync(probe_mask(), v, &same) >> base(); }
    operator coalesced_group() const { return coalesced_group(probe_mask()); }
};
template <unsigned Size, class Parent>
thread_block_tile<Size, Parent> tiled_partition(const Parent&) { return {}; }

// Any of these, its kind known when it runs.
class thread_group : public coalesced_group {
    bool block;

public:
    thread_group(thread_block) : coalesced_group(0), block(true) {}
    thread_group(coalesced_group group) : coalesced_group(group), block(false) {}
    template <unsigned Size, class Parent> thread_group(thread_block_tile<Size, Parent> tile) : coalesced_group(tile), block(false) {}
    PROBE_INLINE void sync() const {
        if (block) thread_block::sync();
        else coalesced_group::sync();
    }
    unsigned thread_rank() const { return block ? thread_block::thread_rank() : coalesced_group::thread_rank(); }
    unsigned num_threads() const { return block ? thread_block::num_threads() : coalesced_group::num_threads(); }
    unsigned size() const { return num_threads(); }
};
inline thread_group tiled_partition(const thread_group&, unsigned size) {
    return coalesced_group((size >= 32 ? 0xffffffffu : (1u << size) - 1u) << (probe_emulation::lane() & ~(size - 1)));
}
template <class Group> PROBE_INLINE coalesced_group binary_partition(const Group& group, bool p) {
    const unsigned yes = __ballot_sync(group.probe_mask(), p);
    return coalesced_group(p ? yes : group.probe_mask() & ~yes);
}
template <class Group, class T> PROBE_INLINE coalesced_group labeled_partition(const Group& group, T label) {
    return coalesced_group(__match_any_sync(group.probe_mask(), label));
}

template <class T = void> struct plus { template <class U> U operator()(const U& a, const U& b) const { return a + b; } };
template <class T = void> struct greater { template <class U> U operator()(const U& a, const U& b) const { return a < b ? b : a; } };
template <class T = void> struct less { template <class U> U operator()(const U& a, const U& b) const { return b < a ? b : a; } };
template <class T = void> struct bit_and { template <class U> U operator()(const U& a, const U& b) const { return a & b; } };
template <class T = void> struct bit_or { template <class U> U operator()(const U& a, const U& b) const { return a | b; } };
template <class T = void> struct bit_xor { template <class U> U operator()(const U& a, const U& b) const { return a ^ b; } };

template <unsigned Size, class Parent, class T, class Op>
PROBE_INLINE T reduce(const thread_block_tile<Size, Parent>& tile, T value, Op op) {
    for (unsigned step = Size / 2; step; step /= 2) value = op(value, tile.shfl_xor(value, (int)step));
    return value;
}
template <class T, class Op>
PROBE_INLINE T reduce(const coalesced_group& group, T value, Op op) {
    T all = group.shfl(value, 0);
    for (unsigned rank = 1; rank < group.num_threads(); ++rank) all = op(all, group.shfl(value, rank));
    return all;
}
template <class Group, class T, class Op = plus<T>>
PROBE_INLINE T inclusive_scan(const Group& group, T value, Op op = Op()) {
    for (unsigned step = 1; step < group.num_threads(); step *= 2) {
        const T before = group.shfl_up(value, step);
        if (group.thread_rank() >= step) value = op(before, value);
    }
    return value;
}
template <class Group, class T, class Op = plus<T>>
PROBE_INLINE T exclusive_scan(const Group& group, T value, Op op = Op()) {
    const T before = group.shfl_up(inclusive_scan(group, value, op), 1);
    return group.thread_rank() ? before : T();
}

// Each thread of the group copies what lies at its rank; a call is a group of copies.
template <class Group, class T, class Bytes>
PROBE_INLINE void memcpy_async(const Group& group, T* to, const T* from, const Bytes& size) {
    const std::size_t bytes = size;
    for (std::size_t at = 16u * group.thread_rank(); at < bytes; at += 16u * group.size())
        probe_emulation::copy_later((char*)to + at, (const char*)from + at, (unsigned)std::min<std::size_t>(16, bytes - at),
                                    (unsigned)std::min<std::size_t>(16, bytes - at));
    probe_emulation::commit_copies();
}
template <class Group> PROBE_INLINE void wait(const Group& group) { probe_emulation::wait_for_copies(0), group.sync(); }
template <unsigned Stages, class Group> PROBE_INLINE void wait_prior(const Group& group) { probe_emulation::wait_for_copies(Stages), group.sync(); }
template <class Group> PROBE_INLINE void sync(const Group& group) { group.sync(); }

}  // namespace cooperative_groups
