// A whole program as people write them: host code around the kernels, of which nothing runs on the CPU but the kernels.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#define CHECK(call)                                                                            \
    do {                                                                                       \
        const cudaError_t status = (call);                                                     \
        if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));       \
    } while (0)
#define THREADS 64

namespace cg = cooperative_groups;

__constant__ float weights[3];
static __device__ unsigned finished = 0;

struct Timer {
    cudaEvent_t begin;
    Timer() : begin(nullptr) { CHECK(cudaEventCreate(&begin)); }
    ~Timer() { cudaEventDestroy(begin); }
};

static float reference(float v) { return v * 2.0f; }
int run(float* x, int n, cudaStream_t stream);

extern "C" __global__ void blur(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0.0f;
    for (int j = -1; j <= 1; ++j)
        if (i + j >= 0 && i + j < n) sum += weights[j + 1] * x[i + j];
    y[i] = sum;
}

// A softmax of each row by a warp; INFINITY comes without <cmath>.
__global__ void softmax(const float* x, float* y, int rows, int columns) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    const int row = blockIdx.x * warp.meta_group_size() + warp.meta_group_rank();
    if (row >= rows) return;
    float most = -INFINITY, sum = 0.0f;
    for (int i = warp.thread_rank(); i < columns; i += warp.size()) most = fmaxf(most, x[row * columns + i]);
    most = cg::reduce(warp, most, cg::greater<float>{});
    for (int i = warp.thread_rank(); i < columns; i += warp.size()) sum += __expf(x[row * columns + i] - most);
    sum = cg::reduce(warp, sum, cg::plus<float>{});
    for (int i = warp.thread_rank(); i < columns; i += warp.size())
        __stcs(y + row * columns + i, __expf(__ldcs(x + row * columns + i) - most) / sum);
}

// Shared arrays of a class with two dimensions, shared counters that atomic functions change.
extern "C" __global__ void __launch_bounds__(THREADS) transposed(const half* x, half* y, int* positive) {
    __shared__ half tile[8][THREADS / 8 + 1];
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    tile[threadIdx.x / 8][threadIdx.x % 8] = x[threadIdx.x];
    __syncthreads();
    if (__hgt(x[threadIdx.x], CUDART_ZERO_FP16)) atomicAdd(&count, 1);
    y[threadIdx.x] = tile[threadIdx.x % 8][threadIdx.x / 8];
    __syncthreads();
    if (threadIdx.x == 0) *positive = count;
}

template <int BLOCK>
__global__ void sum(const float* x, volatile float* parts, float* y) {
    __shared__ float shared[BLOCK];
    __shared__ bool last;
    shared[threadIdx.x] = x[blockIdx.x * BLOCK + threadIdx.x];
    __syncthreads();
    for (int step = BLOCK / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) shared[threadIdx.x] += shared[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = shared[0];
        __threadfence();
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float all = 0.0f;
        for (unsigned i = 0; i < gridDim.x; ++i) all += parts[i];
        *y = all;
    }
}
template __global__ void sum<THREADS>(const float*, volatile float*, float*);

template <typename T>
void launch_sum(const T* x, T* parts, T* y, int blocks, cudaStream_t stream) {
    try {
        sum<THREADS><<<blocks, THREADS, 0, stream>>>(x, parts, y);
        CHECK(cudaGetLastError());
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
    }
}
template void launch_sum<float>(const float*, float*, float*, int, cudaStream_t);

extern "C" __global__ void child(float* x) { x[threadIdx.x] += 1.0f; }
extern "C" __global__ void parent(float* x) {
#ifdef __CUDACC_RDC__  // a kernel launches others only where it is linked with the runtime of the device
    if (threadIdx.x == 0) child<<<1, 32>>>(x);
#endif
}

int main(int argc, char** argv) {
    std::vector<float> host(1 << 10, reference(1.0f));
    float* x;
    Timer timer;
    CHECK(cudaMalloc(&x, host.size() * sizeof(float)));
    const auto start = std::chrono::steady_clock::now();
    child<<<dim3(1), dim3(32)>>>(x);
    CHECK(cudaMemcpyToSymbol(weights, host.data(), sizeof weights));
    CHECK(cudaDeviceSynchronize());
    printf("%s: %f s\n", argv[0], std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return cudaFree(x) != cudaSuccess;
}
