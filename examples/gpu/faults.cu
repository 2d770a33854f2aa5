// Kernels with one fault each, and their clean twin: what probe sanitize is shown and tested on.
// Every kernel takes (float *out, const float *x, int n) and runs in blocks of 128 threads.

// out[i] = 2 x[i].
extern "C" __global__ void twice(float *out, const float *x, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[i] = 2.0f * x[i];
}

// Off by one: the thread with i == n writes one element behind the end.
extern "C" __global__ void out_of_bounds(float *out, const float *x, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n)
        out[i] = 2.0f * x[i < n ? i : n - 1];
}

// out[block] = sum of the block's elements; the barrier after the first store is missing.
extern "C" __global__ void race(float *out, const float *x, int n)
{
    __shared__ float partial[128];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    partial[threadIdx.x] = i < n ? x[i] : 0.0f;
    for (int half = 64; half > 0; half /= 2) {
        if (threadIdx.x < half)
            partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        out[blockIdx.x] = partial[0];
}

// Reads the whole of x, of which whoever launched it filled only the first half.
extern "C" __global__ void uninitialised(float *out, const float *x, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[i] = x[i] + 1.0f;
}

// The barrier is for every thread of the block; half of each warp goes around it.
extern "C" __global__ void divergent_barrier(float *out, const float *x, int n)
{
    __shared__ float tile[128];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
        tile[threadIdx.x] += 1.0f;
    }
    if (i < n)
        out[i] = tile[threadIdx.x];
}
