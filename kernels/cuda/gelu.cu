// output = gelu(input + bias) over [rows, columns]; bias [columns] is float32 and may be null; erf is 0 (tanh) or 1.
#include "common.cuh"

namespace probe {

constexpr int UNROLL = 4;  // vectors of a thread, a block's width apart: enough loads under way for the memory

template <int WIDTH, typename T>
__device__ __forceinline__ void gelu_vectors(
    const T* input, const float* bias, T* output, long long vectors, int columns, bool erf) {
    const long long first = static_cast<long long>(blockIdx.x) * blockDim.x * UNROLL + threadIdx.x;
    Vector<T, WIDTH> values[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const long long vector = first + u * static_cast<int>(blockDim.x);
        if (vector < vectors) { values[u] = load<WIDTH>(input + vector * WIDTH); }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const long long vector = first + u * static_cast<int>(blockDim.x);
        if (vector >= vectors) { return; }
        const int column = bias == nullptr ? 0 : column_of(vector * WIDTH, columns);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float x = to_float(values[u].at[i]) + (bias == nullptr ? 0.0f : bias[column + i]);
            values[u].at[i] = from_float<T>(erf ? gelu_erf(x) : gelu_tanh(x));
        }
        store(output + vector * WIDTH, values[u]);
    }
}

template <typename T>
__device__ __forceinline__ void gelu(const T* input, const float* bias, T* output, int rows, int columns, int erf) {
    const long long count = static_cast<long long>(rows) * columns;
    if (columns % VECTOR_WIDTH<T> == 0) {
        gelu_vectors<VECTOR_WIDTH<T>>(input, bias, output, count / VECTOR_WIDTH<T>, columns, erf != 0);
    } else {
        gelu_vectors<1>(input, bias, output, count, columns, erf != 0);
    }
}

}  // namespace probe

using namespace probe;

extern "C" __global__ void __launch_bounds__(256) gelu_f32(
    const float* input, const float* bias, float* output, int rows, int columns, int erf) {
    after_previous();
    gelu(input, bias, output, rows, columns, erf);
}

extern "C" __global__ void __launch_bounds__(256) gelu_f16(
    const __half* input, const float* bias, __half* output, int rows, int columns, int erf) {
    after_previous();
    gelu(input, bias, output, rows, columns, erf);
}

extern "C" __global__ void __launch_bounds__(256) gelu_bf16(
    const __nv_bfloat16* input, const float* bias, __nv_bfloat16* output, int rows, int columns, int erf) {
    after_previous();
    gelu(input, bias, output, rows, columns, erf);
}
