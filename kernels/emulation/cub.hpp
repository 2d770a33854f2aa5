// The parts of CUB that kernels use inside of a block: reductions and scans of a warp and of a block.
#pragma once

#include "warp.hpp"

namespace cub {

struct Sum { template <class T> PROBE_INLINE T operator()(const T& a, const T& b) const { return a + b; } };
struct Max { template <class T> PROBE_INLINE T operator()(const T& a, const T& b) const { return a < b ? b : a; } };
struct Min { template <class T> PROBE_INLINE T operator()(const T& a, const T& b) const { return b < a ? b : a; } };
struct ArgMax { template <class P> PROBE_INLINE P operator()(const P& a, const P& b) const { return b.value > a.value || (a.value == b.value && b.key < a.key) ? b : a; } };
struct ArgMin { template <class P> PROBE_INLINE P operator()(const P& a, const P& b) const { return b.value < a.value || (a.value == b.value && b.key < a.key) ? b : a; } };
template <class Key, class Value> struct KeyValuePair { Key key; Value value; };
enum BlockReduceAlgorithm { BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY, BLOCK_REDUCE_RAKING, BLOCK_REDUCE_WARP_REDUCTIONS };
enum BlockScanAlgorithm { BLOCK_SCAN_RAKING, BLOCK_SCAN_RAKING_MEMOIZE, BLOCK_SCAN_WARP_SCANS };

// What is valid in the first thread alone is given to it alone; the rest get their own value back.
template <class T, int Threads = 32>
class WarpReduce {
public:
    struct TempStorage {};
    explicit WarpReduce(TempStorage&) {}
    template <class Op> PROBE_INLINE T Reduce(T value, Op op) { return Reduce(value, op, Threads); }
    template <class Op> PROBE_INLINE T Reduce(T value, Op op, int valid) {
        const int rank = (int)(probe_emulation::lane() % Threads);
        for (int step = 1; step < Threads; step *= 2) {
            const T other = __shfl_down_sync(0xffffffffu, value, (unsigned)step, Threads);
            if (rank + step < valid) value = op(value, other);
        }
        return value;
    }
    PROBE_INLINE T Sum(T value) { return Reduce(value, cub::Sum()); }
    PROBE_INLINE T Sum(T value, int valid) { return Reduce(value, cub::Sum(), valid); }
};

template <class T, int X, BlockReduceAlgorithm = BLOCK_REDUCE_WARP_REDUCTIONS, int Y = 1, int Z = 1, int = 0>
class BlockReduce {
    static constexpr int threads = X * Y * Z;

public:
    struct TempStorage { alignas(T) unsigned char bytes[threads * sizeof(T)]; };
    explicit BlockReduce(TempStorage& storage) : shared((T*)storage.bytes) {}

    template <class Op> PROBE_INLINE T Reduce(T value, Op op) { return Reduce(value, op, threads); }
    template <class Op> PROBE_INLINE T Reduce(T value, Op op, int valid) {
        const int rank = (int)probe_emulation::thread_rank();
        shared[rank] = value;
        probe_emulation::barrier(0, 0);
        if (rank == 0)
            for (int i = 1; i < threads && i < valid; ++i) value = op(value, shared[i]);
        return value;
    }
    template <int N, class Op> PROBE_INLINE T Reduce(T (&values)[N], Op op) {
        T value = values[0];
        for (int i = 1; i < N; ++i) value = op(value, values[i]);
        return Reduce(value, op);
    }
    PROBE_INLINE T Sum(T value) { return Reduce(value, cub::Sum()); }
    PROBE_INLINE T Sum(T value, int valid) { return Reduce(value, cub::Sum(), valid); }
    template <int N> PROBE_INLINE T Sum(T (&values)[N]) { return Reduce(values, cub::Sum()); }

private:
    T* shared;
};

template <class T, int X, BlockScanAlgorithm = BLOCK_SCAN_RAKING, int Y = 1, int Z = 1, int = 0>
class BlockScan {
    static constexpr int threads = X * Y * Z;

public:
    struct TempStorage { alignas(T) unsigned char bytes[threads * sizeof(T)]; };
    explicit BlockScan(TempStorage& storage) : shared((T*)storage.bytes) {}

    template <class Op> PROBE_INLINE void InclusiveScan(T value, T& out, Op op, T& all) {
        const int rank = (int)probe_emulation::thread_rank();
        shared[rank] = value;
        probe_emulation::barrier(0, 0);
        all = out = shared[0];
        for (int i = 1; i < threads; ++i) {
            all = op(all, shared[i]);
            if (i == rank) out = all;
        }
    }
    template <class Op> PROBE_INLINE void InclusiveScan(T value, T& out, Op op) { T all; InclusiveScan(value, out, op, all); }
    PROBE_INLINE void InclusiveSum(T value, T& out) { InclusiveScan(value, out, cub::Sum()); }
    PROBE_INLINE void InclusiveSum(T value, T& out, T& all) { InclusiveScan(value, out, cub::Sum(), all); }
    PROBE_INLINE void ExclusiveSum(T value, T& out) { InclusiveSum(value, out), out = out - value; }
    PROBE_INLINE void ExclusiveSum(T value, T& out, T& all) { InclusiveSum(value, out, all), out = out - value; }

private:
    T* shared;
};

}  // namespace cub
