// Small kernels for the tests of compiling and launching.
#include <cuda_fp16.h>

#include "vector.h"

#ifndef FACTOR
#define FACTOR 1
#endif

extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += FACTOR * a * x[i];
}

extern "C" __global__ void twice_half(__half* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = TWICE(x[i]);
}

// Reverses n floats through dynamic shared memory: one block, n * 4 bytes.
extern "C" __global__ void reverse(float* x, int n) {
  extern __shared__ float room[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) room[i] = x[n - 1 - i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = room[i];
}

// One element past the end, where the guard zone lies.
extern "C" __global__ void overrun(float* x, int n) { x[n] = 1.0f; }

// An address that no allocation holds.
extern "C" __global__ void wild(float* x) { *(float*)((char*)x + (1ull << 44)) = 1.0f; }

// Takes long enough to be measured, whatever the clocks: `ns` nanoseconds.
extern "C" __global__ void wait(long long ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - start < (unsigned long long)ns);
}
