// The groups of CUDA that one block can hold: thread_block, tiles of a warp, coalesced threads.
#pragma once
#ifndef PROBE_EMULATION_SCAN

namespace cooperative_groups {

class thread_block {
public:
    static void sync() { probe_emulation::barrier(0, 0); }
    static unsigned thread_rank() { return probe_emulation::thread_rank(); }
    static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned size() { return num_threads(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 dim_threads() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

template <unsigned Size>
class thread_block_tile {
    static_assert(Size <= 32 && (Size & (Size - 1)) == 0, "tiles of 1, 2, 4 ... 32 threads are emulated");
    static unsigned mask() { return (Size == 32 ? 0xffffffffu : (1u << Size % 32) - 1u) << base(); }
    static unsigned base() { return probe_emulation::lane() & ~(Size - 1); }

public:
    static void sync() { __syncwarp(mask()); }
    static unsigned thread_rank() { return probe_emulation::lane() & (Size - 1); }
    static constexpr unsigned num_threads() { return Size; }
    static constexpr unsigned size() { return Size; }
    static unsigned meta_group_rank() { return probe_emulation::thread_rank() / Size; }
    static unsigned meta_group_size() { return (thread_block::num_threads() + Size - 1) / Size; }
    template <class T> static T shfl(T v, int source) { return __shfl_sync(mask(), v, source, Size); }
    template <class T> static T shfl_up(T v, unsigned delta) { return __shfl_up_sync(mask(), v, delta, Size); }
    template <class T> static T shfl_down(T v, unsigned delta) { return __shfl_down_sync(mask(), v, delta, Size); }
    template <class T> static T shfl_xor(T v, int lanes) { return __shfl_xor_sync(mask(), v, lanes, Size); }
    static unsigned ballot(int p) { return __ballot_sync(mask(), p) >> base(); }
    static int any(int p) { return __any_sync(mask(), p); }
    static int all(int p) { return __all_sync(mask(), p); }
    template <class T> static unsigned match_any(T v) { return __match_any_sync(mask(), v) >> base(); }
};
template <unsigned Size, class Parent>
thread_block_tile<Size> tiled_partition(const Parent&) { return {}; }

class coalesced_group {
    unsigned mask;

public:
    explicit coalesced_group(unsigned mask) : mask(mask) {}
    void sync() const { __syncwarp(mask); }
    unsigned thread_rank() const { return (unsigned)__popc(mask & __lanemask_lt()); }
    unsigned num_threads() const { return (unsigned)__popc(mask); }
    unsigned size() const { return num_threads(); }
    template <class T> T shfl(T v, unsigned rank) const {
        unsigned left = mask;
        while (rank--) left &= left - 1;
        return __shfl_sync(mask, v, __ffs((int)left) - 1);
    }
    int any(int p) const { return __any_sync(mask, p); }
    int all(int p) const { return __all_sync(mask, p); }
};
inline coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }

template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };
template <class T> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };

template <unsigned Size, class T, class Op>
T reduce(const thread_block_tile<Size>& tile, T value, Op op) {
    for (unsigned step = Size / 2; step; step /= 2) value = op(value, tile.shfl_xor(value, (int)step));
    return value;
}

template <class Group>
void sync(const Group& group) { group.sync(); }

}  // namespace cooperative_groups
#endif
