// Copies in the background: waited for, not waited for, and waited for by the wrong thread or at the wrong moment.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda_pipeline.h>

namespace cg = cooperative_groups;

__device__ __forceinline__ void bring(float* to, const float* from, int given = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(given));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int PRIOR> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PRIOR)); }

// Sums of the columns of x [n, 32], the next row on its way while one is read; PRIOR rows need not have come.
template <int PRIOR>
__global__ void rows(const float* x, float* y, int n) {
    __shared__ float tile[2][32];
    const int t = threadIdx.x;
    bring(&tile[0][t], x + t);
    commit();
    float sum = 0;
    for (int i = 0; i < n; ++i) {
        if (i + 1 < n) bring(&tile[(i + 1) % 2][t], x + 32 * (i + 1) + t);
        commit();
        wait<PRIOR>();
        __syncthreads();
        sum += tile[i % 2][31 - t];  // <- row
        __syncthreads();
    }
    y[31 - t] = sum;
}

extern "C" __global__ void zeros_behind(const float* x, float* y) {
    __shared__ float tile[32];
    bring(&tile[threadIdx.x], x + threadIdx.x, threadIdx.x < 20 ? 4 : 0);
    asm volatile("cp.async.wait_all;");
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void no_wait(const float* x, float* y) {
    __shared__ float tile[32];
    bring(&tile[threadIdx.x], x + threadIdx.x);
    commit();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];  // <- no wait
}

extern "C" __global__ void no_barrier(const float* x, float* y) {
    __shared__ float tile[64];
    bring(&tile[threadIdx.x], x + threadIdx.x);
    commit();
    wait<0>();
    y[threadIdx.x] = tile[63 - threadIdx.x];  // <- no barrier
}

extern "C" __global__ void barrier_too_early(const float* x, float* y) {
    __shared__ float tile[64];
    bring(&tile[threadIdx.x], x + threadIdx.x);
    commit();
    __syncthreads();
    wait<0>();
    y[threadIdx.x] = tile[63 - threadIdx.x];  // <- barrier too early
}

extern "C" __global__ void by_pipeline(const float4* x, float4* y, int prior) {
    __shared__ float4 tile[2][32];
    const int t = threadIdx.x;
    for (int i = 0; i < 2; ++i) {
        __pipeline_memcpy_async(&tile[i][t], x + 32 * i + t, 16, i ? 8 : 0);
        __pipeline_commit();
    }
    __pipeline_wait_prior(prior);
    y[t] = tile[0][t];
    y[32 + t] = tile[1][t];  // <- the second
}

extern "C" __global__ void by_group(const float* x, float* y, int waits) {
    __shared__ float tile[128];
    const auto block = cg::this_thread_block();
    cg::memcpy_async(block, tile, x, sizeof tile);
    if (waits) cg::wait(block);
    else block.sync();
    for (int i = threadIdx.x; i < 128; i += blockDim.x) y[i] = tile[127 - i];  // <- of the group
}

extern "C" __global__ void by_barrier(const float* x, float* y, int waits) {
    __shared__ cuda::barrier<cuda::thread_scope_block> meet;
    __shared__ float tile[128];
    const auto block = cg::this_thread_block();
    if (threadIdx.x == 0) init(&meet, blockDim.x);
    __syncthreads();
    cuda::memcpy_async(block, tile, x, sizeof tile, meet);
    if (waits) meet.arrive_and_wait();
    else __syncthreads();
    for (int i = threadIdx.x; i < 128; i += blockDim.x) y[i] = tile[127 - i];  // <- of the barrier
}

extern "C" __global__ void by_stages(const float* x, float* y, int waits) {
    __shared__ float tile[2][4];
    auto pipe = cuda::make_pipeline();
    if (threadIdx.x) return;
    for (int i = 0; i < 2; ++i) {
        pipe.producer_acquire();
        cuda::memcpy_async(tile[i], x + 4 * i, cuda::aligned_size_t<16>(16), pipe);
        pipe.producer_commit();
    }
    cuda::pipeline_consumer_wait_prior<1>(pipe);
    for (int i = 0; i < 4; ++i) y[i] = tile[0][i];
    if (waits) cuda::pipeline_consumer_wait_prior<0>(pipe);
    for (int i = 0; i < 4; ++i) y[4 + i] = tile[1][i];  // <- of the pipeline
}
