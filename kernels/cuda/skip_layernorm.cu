// output = layernorm(input + skip + bias) over rows of any length; bias may be null. Parameters are float32.
//
// A row belongs to the threads of a block along x; along y there are further rows, and then x is one warp.
#include "layernorm.cuh"

namespace probe {

template <typename T, int WIDTH>
struct SkipRow {
    struct Raw {
        Vector<T, WIDTH> input, skip;
    };
    const T *input, *skip;
    const float* bias;

    __device__ __forceinline__ Raw fetch(int column) const {
        return {load<WIDTH>(input + column), load<WIDTH>(skip + column)};
    }

    __device__ __forceinline__ void widen(const Raw& raw, int column, float (&values)[WIDTH]) const {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { values[i] = to_float(raw.input.at[i]) + to_float(raw.skip.at[i]); }
        if (bias != nullptr) {
            float more[WIDTH];
            read_parameters(bias + column, more);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) { values[i] += more[i]; }
        }
    }
};

template <int WIDTH, typename T>
__device__ __forceinline__ void skip_layernorm_row(const SkipRow<T, WIDTH>& row, T* output, const Norm& norm) {
    normalise<WIDTH>(
        norm, row, [=](int column, const float(&values)[WIDTH]) { write_vector(output + column, values); });
}

template <typename T>
__device__ __forceinline__ void skip_layernorm(
    const T* input, const T* skip, const float* bias, T* output, int rows, const Norm& norm) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows) { return; }
    const long long start = row * norm.hidden;
    if (norm.hidden % WIDTH == 0) {
        skip_layernorm_row(SkipRow<T, WIDTH>{input + start, skip + start, bias}, output + start, norm);
    } else {
        skip_layernorm_row(SkipRow<T, 1>{input + start, skip + start, bias}, output + start, norm);
    }
}

// Where an int8 element lies: row-major has panel_stride 32, and kCHW32 (32 channels of a token beside each other) has
// row_stride 32 and panel_stride 32 * rows.
struct Place {
    long long row_stride;
    long long panel_stride;

    __device__ __forceinline__ long long operator()(long long row, int column) const {
        return row * row_stride + column / 32 * panel_stride + column % 32;
    }
};

struct Scales {
    float input, skip, output, residual;  // one step of each, as a real number
};

template <int WIDTH>
struct SkipRowInt8 {
    struct Raw {
        Vector<int8, WIDTH> input, skip;
    };
    const int8 *input, *skip;
    const float* bias;
    int8* residual;
    long long row;
    Place place;
    Scales scales;

    __device__ __forceinline__ Raw fetch(int column) const {
        const long long at = place(row, column);
        return {load<WIDTH>(input + at), load<WIDTH>(skip + at)};
    }

    __device__ __forceinline__ void widen(const Raw& raw, int column, float (&values)[WIDTH]) const {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            values[i] = to_float(raw.input.at[i]) * scales.input + to_float(raw.skip.at[i]) * scales.skip;
            if (bias != nullptr) { values[i] += bias[column + i]; }
        }
        if (residual != nullptr) {
            float sum[WIDTH];
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) { sum[i] = values[i] / scales.residual; }
            write_vector(residual + place(row, column), sum);
        }
    }
};

template <int WIDTH>
__device__ __forceinline__ void skip_layernorm_int8_row(const SkipRowInt8<WIDTH>& row, int8* output, const Norm& norm) {
    normalise<WIDTH>(norm, row, [=](int column, float(&values)[WIDTH]) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { values[i] /= row.scales.output; }
        write_vector(output + row.place(row.row, column), values);
    });
}

}  // namespace probe

using namespace probe;

extern "C" __global__ void __launch_bounds__(512) skip_layernorm_f32(
    const float* input, const float* skip, const float* bias, const float* gamma, const float* beta, float* output,
    int rows, int hidden, float epsilon) {
    after_previous();
    skip_layernorm(input, skip, bias, output, rows, Norm{gamma, beta, hidden, epsilon});
}

extern "C" __global__ void __launch_bounds__(512) skip_layernorm_f16(
    const __half* input, const __half* skip, const float* bias, const float* gamma, const float* beta, __half* output,
    int rows, int hidden, float epsilon) {
    after_previous();
    skip_layernorm(input, skip, bias, output, rows, Norm{gamma, beta, hidden, epsilon});
}

extern "C" __global__ void __launch_bounds__(512) skip_layernorm_bf16(
    const __nv_bfloat16* input, const __nv_bfloat16* skip, const float* bias, const float* gamma, const float* beta,
    __nv_bfloat16* output, int rows, int hidden, float epsilon) {
    after_previous();
    skip_layernorm(input, skip, bias, output, rows, Norm{gamma, beta, hidden, epsilon});
}

// `residual`, if not null, gets input + skip + bias, as Megatron's order of layers wants it.
extern "C" __global__ void __launch_bounds__(512, 1) skip_layernorm_s8(
    const signed char* input, const signed char* skip, const float* bias, const float* gamma, const float* beta,
    signed char* output, signed char* residual, int rows, int hidden, float epsilon, long long row_stride,
    long long panel_stride, float input_scale, float skip_scale, float output_scale, float residual_scale) {
    after_previous();
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows) { return; }
    const Place place{row_stride, panel_stride};
    const Scales scales{input_scale, skip_scale, output_scale, residual_scale};
    const Norm norm{gamma, beta, hidden, epsilon};
    if (hidden % 16 == 0) {
        skip_layernorm_int8_row(SkipRowInt8<16>{input, skip, bias, residual, row, place, scales}, output, norm);
    } else {
        skip_layernorm_int8_row(SkipRowInt8<1>{input, skip, bias, residual, row, place, scales}, output, norm);
    }
}
