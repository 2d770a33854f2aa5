// The sum of each row of n elements, one block a row. A barrier is missing.
extern "C" __global__ void row_sum(const float* x, float* sums, int n) {
  __shared__ float parts[4];
  float sum = 0.f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
  for (int offset = 16; offset; offset >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  if (threadIdx.x == 0) {
    float total = 0.f;
    for (int warp = 0; warp < blockDim.x / 32; ++warp)
      total += parts[warp];
    sums[blockIdx.x] = total;
  }
}
