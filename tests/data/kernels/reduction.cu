// A sum by block: shuffles in a warp, shared memory between warps.
extern "C" __global__ void __launch_bounds__(256) block_sum(const float* __restrict__ x, float* y, int n) {
    extern __shared__ float smem[];
    __shared__ float total[8];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = i < n ? x[i] : 0.f;
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    if (threadIdx.x % 32 == 0) total[threadIdx.x / 32] = v;
    smem[threadIdx.x] = v;
    __syncthreads();
    float s = 0;
    for (int w = 0; w < blockDim.x / 32; ++w) s += total[w];
    if (threadIdx.x == 0) { y[blockIdx.x] = s; }
}
