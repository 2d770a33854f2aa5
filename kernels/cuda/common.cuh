// What every kernel shares: element types, 16-byte loads, reductions of a warp and of a block, fast maths.
//
// Compiles with NVRTC and nvcc, and with g++ under PROBE_EMULATION: no host header, no inline PTX.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "overlap.cuh"

namespace probe {

using float16 = __half;
using bfloat16 = __nv_bfloat16;
using int8 = signed char;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// ---- element types: to and from float32, in which everything is computed

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(float16 value) { return __half2float(value); }
__device__ __forceinline__ float to_float(bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(int8 value) { return static_cast<float>(value); }
__device__ __forceinline__ float to_float(int value) { return static_cast<float>(value); }

// Round to nearest, ties to even; int8 saturates (NaN becomes -128).
template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ float16 from_float<float16>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ int8 from_float<int8>(float value) {
    return static_cast<int8>(__float2int_rn(fminf(fmaxf(value, -128.0f), 127.0f)));
}

// ---- vectors: WIDTH neighbours, read or written by one instruction

template <typename T>
constexpr int VECTOR_WIDTH = 16 / static_cast<int>(sizeof(T));

template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Vector {
    T at[WIDTH];
};

// `source` must be aligned to the whole vector.
template <int WIDTH, typename T>
__device__ __forceinline__ Vector<T, WIDTH> load(const T* source) {
    return *reinterpret_cast<const Vector<T, WIDTH>*>(source);
}

template <int WIDTH, typename T>
__device__ __forceinline__ void store(T* target, const Vector<T, WIDTH>& values) {
    *reinterpret_cast<Vector<T, WIDTH>*>(target) = values;
}

// ---- reductions: every thread gets the result

struct Add {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over groups of LANES neighbouring lanes (a power of two, at most a warp); all lanes of the warp take part.
template <int LANES = WARP, typename Operation>
__device__ __forceinline__ float warp_reduce(float value, Operation operation) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        value = operation(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

// Over the threads of a block along x (a multiple of 32); `partial` holds a float for each of its warps. All threads of
// the block take part. `partial` may be used again after the next barrier: give two reductions in a row two of them.
template <typename Operation>
__device__ __forceinline__ float block_reduce(float value, float* partial, Operation operation) {
    value = warp_reduce(value, operation);
    const int warps = blockDim.x / WARP;
    if (warps == 1) { return value; }
    if (threadIdx.x % WARP == 0) { partial[threadIdx.x / WARP] = value; }
    __syncthreads();
    value = partial[0];
    for (int warp = 1; warp < warps; ++warp) { value = operation(value, partial[warp]); }
    return value;
}

// ---- maths

// The column of an element: a division of 32 bits where they do, since one of 64 costs as much as a dozen values.
__device__ __forceinline__ int column_of(long long at, int columns) {
    const bool small = at <= 0xffffffffLL;
    return static_cast<int>(small ? static_cast<unsigned>(at) % static_cast<unsigned>(columns) : at % columns);
}

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float gelu_tanh(float x) {
    // 0.5 x (1 + tanh(y)) = x / (1 + exp(-2y)): one exponential, right at both ends. The division is the fast one, within
    // 2 units of the last place: an exact one costs more than all else here, and a memory's time more.
    const float y = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + __expf(-2.0f * y));
}

__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f)); }

}  // namespace probe
