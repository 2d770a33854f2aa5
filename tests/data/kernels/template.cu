#include <cuda_fp16.h>

// Dynamic shared memory of any type, in a kernel that is a template.
template <typename T, int Threads>
__global__ void reverse(const T* x, T* y) {
    extern __shared__ __align__(16) unsigned char raw[];
    T* tile = reinterpret_cast<T*>(raw);
    tile[threadIdx.x] = x[blockIdx.x * Threads + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * Threads + threadIdx.x] = tile[Threads - 1 - threadIdx.x];
}
