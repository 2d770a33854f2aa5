// What kernels use of libcu++ and CUB.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cub/cub.cuh>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda/std/limits>
#include <cuda/std/type_traits>

namespace cg = cooperative_groups;

extern "C" __global__ void counted(int* total, int* most) {
    __shared__ cuda::atomic<int, cuda::thread_scope_block> here;
    if (threadIdx.x == 0) here.store(0);
    __syncthreads();
    here.fetch_add((int)threadIdx.x, cuda::memory_order_relaxed);
    cuda::atomic_ref<int, cuda::thread_scope_device>(*most).fetch_max((int)(blockIdx.x * blockDim.x + threadIdx.x));
    __syncthreads();
    if (threadIdx.x == 0) cuda::atomic_ref<int>(*total) += here.load();
}

// Each thread reads what another has written, behind a barrier object, twice.
extern "C" __global__ void meeting(const float* x, float* y) {
    using barrier = cuda::barrier<cuda::thread_scope_block>;
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ barrier meet;
    __shared__ float tile[64];
    if (threadIdx.x == 0) init(&meet, blockDim.x);
    __syncthreads();
    tile[threadIdx.x] = x[threadIdx.x];
    auto token = meet.arrive();
    meet.wait(std::move(token));
    const float v = tile[63 - threadIdx.x];
    meet.arrive_and_wait();
    tile[threadIdx.x] = 2.0f * v;
    meet.arrive_and_wait();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void piped(const float* x, float* y) {
    __shared__ float tiles[2][64];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cg::this_thread_block();
    auto pipe = cuda::make_pipeline(block, &state);
    for (int i = 0; i < 2; ++i) {
        pipe.producer_acquire();
        cuda::memcpy_async(block, tiles[i], x + 64 * i, cuda::aligned_size_t<16>(sizeof tiles[i]), pipe);
        pipe.producer_commit();
    }
    for (int i = 0; i < 2; ++i) {
        pipe.consumer_wait();
        y[64 * i + threadIdx.x] = tiles[i][63 - threadIdx.x];
        pipe.consumer_release();
    }
}

template <class T, int THREADS>
__global__ void reduced(const T* x, T* y, int n) {
    static_assert(cuda::std::is_floating_point_v<T>);
    using Reduce = cub::BlockReduce<T, THREADS>;
    using Scan = cub::BlockScan<T, THREADS>;
    __shared__ typename Reduce::TempStorage reducing;
    __shared__ typename Scan::TempStorage scanning;
    __shared__ typename cub::WarpReduce<T>::TempStorage warps[THREADS / 32];
    const T v = threadIdx.x < n ? x[threadIdx.x] : T(0);
    const T all = Reduce(reducing).Sum(v);
    T before;
    Scan(scanning).ExclusiveSum(v, before);
    const T warp = cub::WarpReduce<T>(warps[threadIdx.x / 32]).Sum(v);
    y[threadIdx.x] = before;
    if (threadIdx.x == 0) y[THREADS] = all;
    if (threadIdx.x % 32 == 0) y[THREADS + 1 + threadIdx.x / 32] = warp;
}

extern "C" __global__ void groups(const int* x, int* y, int* count) {
    auto block = cg::this_thread_block();
    auto warp = cg::tiled_partition<32>(block);
    auto tile = cg::tiled_partition<16>(warp);
    __shared__ int copy[64];
    cg::memcpy_async(block, copy, x, sizeof copy);
    cg::wait(block);
    int* row = y + 6 * cg::this_grid().thread_rank();
    const int v = copy[block.thread_rank()];
    row[0] = cg::inclusive_scan(tile, v, cg::plus<int>());
    row[1] = cg::exclusive_scan(tile, v);
    row[2] = (int)tile.meta_group_rank();
    row[3] = (int)cg::binary_partition(tile, v % 2 == 0).size();
    row[4] = cg::reduce(cg::labeled_partition(warp, v % 3), v, cg::plus<int>());
    if (v % 5 == 0) {
        auto together = cg::coalesced_threads();
        int first;
        if (together.thread_rank() == 0) first = atomicAdd(count, (int)together.size());
        row[5] = together.shfl(first, 0) + (int)together.thread_rank();
    }
}
