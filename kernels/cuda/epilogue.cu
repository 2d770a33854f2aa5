// What follows a matrix product where the vendor's library cannot do it: scales, bias, GELU, rounding to int8.
//
// int32 sums [rows, columns] become activation(sum * scale * channel_scale[column] + bias[column]); null pointers count
// as ones and zeros; activation is 0 (none), 1 (tanh GELU) or 2 (erf GELU). int8 values are real / scale.
#include "common.cuh"

namespace probe {

constexpr int SUMS = 4;  // int32 in one vector

__device__ __forceinline__ float activate(float x, int activation) {
    return activation == 1 ? gelu_tanh(x) : activation == 2 ? gelu_erf(x) : x;
}

template <int WIDTH, typename T>
__device__ __forceinline__ void finish_sums(
    const int* sums, const float* channel_scale, const float* bias, T* output, long long count, int columns,
    float scale, float output_scale, int activation) {
    const long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
    if (at >= count) { return; }
    const int column = column_of(at, columns);
    const auto values = load<WIDTH>(sums + at);
    Vector<T, WIDTH> made;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        float x = to_float(values.at[i]) * scale;
        if (channel_scale != nullptr) { x *= channel_scale[column + i]; }
        if (bias != nullptr) { x += bias[column + i]; }
        made.at[i] = from_float<T>(activate(x, activation) / output_scale);
    }
    store(output + at, made);
}

template <typename T>
__device__ __forceinline__ void finish(
    const int* sums, const float* channel_scale, const float* bias, T* output, int rows, int columns, float scale,
    float output_scale, int activation) {
    const long long count = static_cast<long long>(rows) * columns;
    if (columns % SUMS == 0) {
        finish_sums<SUMS>(sums, channel_scale, bias, output, count, columns, scale, output_scale, activation);
    } else {
        finish_sums<1>(sums, channel_scale, bias, output, count, columns, scale, output_scale, activation);
    }
}

// Neighbours of one vector of the wider type; the last few one by one.
template <typename From, typename To>
__device__ __forceinline__ void scale_all(const From* input, To* output, long long count, float scale, bool divide) {
    constexpr int WIDTH = sizeof(From) > sizeof(To) ? VECTOR_WIDTH<From> : VECTOR_WIDTH<To>;
    const long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
    const auto scaled = [=](From value) {
        return from_float<To>(divide ? to_float(value) / scale : to_float(value) * scale);
    };
    if (at + WIDTH <= count) {
        const auto values = load<WIDTH>(input + at);
        Vector<To, WIDTH> made;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { made.at[i] = scaled(values.at[i]); }
        store(output + at, made);
    } else {
        for (long long i = at; i < count; ++i) { output[i] = scaled(input[i]); }
    }
}

}  // namespace probe

using namespace probe;

extern "C" __global__ void __launch_bounds__(256) finish_sums_f32(
    const int* sums, const float* channel_scale, const float* bias, float* output, int rows, int columns, float scale,
    float output_scale, int activation) {
    after_previous();
    finish(sums, channel_scale, bias, output, rows, columns, scale, output_scale, activation);
}

extern "C" __global__ void __launch_bounds__(256) finish_sums_f16(
    const int* sums, const float* channel_scale, const float* bias, __half* output, int rows, int columns, float scale,
    float output_scale, int activation) {
    after_previous();
    finish(sums, channel_scale, bias, output, rows, columns, scale, output_scale, activation);
}

extern "C" __global__ void __launch_bounds__(256) finish_sums_bf16(
    const int* sums, const float* channel_scale, const float* bias, __nv_bfloat16* output, int rows, int columns,
    float scale, float output_scale, int activation) {
    after_previous();
    finish(sums, channel_scale, bias, output, rows, columns, scale, output_scale, activation);
}

extern "C" __global__ void __launch_bounds__(256) finish_sums_s8(
    const int* sums, const float* channel_scale, const float* bias, signed char* output, int rows, int columns,
    float scale, float output_scale, int activation) {
    after_previous();
    finish(sums, channel_scale, bias, output, rows, columns, scale, output_scale, activation);
}

extern "C" __global__ void __launch_bounds__(256) quantise_f32(
    const float* input, signed char* output, long long count, float scale) {
    after_previous();
    scale_all(input, output, count, scale, true);
}

extern "C" __global__ void __launch_bounds__(256) quantise_f16(
    const __half* input, signed char* output, long long count, float scale) {
    after_previous();
    scale_all(input, output, count, scale, true);
}

extern "C" __global__ void __launch_bounds__(256) quantise_bf16(
    const __nv_bfloat16* input, signed char* output, long long count, float scale) {
    after_previous();
    scale_all(input, output, count, scale, true);
}

extern "C" __global__ void __launch_bounds__(256) dequantise_f32(
    const signed char* input, float* output, long long count, float scale) {
    after_previous();
    scale_all(input, output, count, scale, false);
}

extern "C" __global__ void __launch_bounds__(256) dequantise_f16(
    const signed char* input, __half* output, long long count, float scale) {
    after_previous();
    scale_all(input, output, count, scale, false);
}

extern "C" __global__ void __launch_bounds__(256) dequantise_bf16(
    const signed char* input, __nv_bfloat16* output, long long count, float scale) {
    after_previous();
    scale_all(input, output, count, scale, false);
}
