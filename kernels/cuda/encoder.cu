// The small steps of an encoder that is not fused, and those that int8 and int4 need between two products.
#include "layernorm.cuh"

namespace probe {

__device__ __forceinline__ long long own_vector() {
    return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Q, K and V [rows, hidden] side by side: [rows, 3, hidden].
template <typename T>
__device__ __forceinline__ void gather(const T* q, const T* k, const T* v, T* out, int rows, int hidden) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long at = own_vector() * WIDTH, row = at / hidden;
    if (row >= rows) { return; }
    const long long target = row * 3 * hidden + at % hidden;
    store(out + target, load<WIDTH>(q + at));
    store(out + target + hidden, load<WIDTH>(k + at));
    store(out + target + 2 * hidden, load<WIDTH>(v + at));
}

template <typename T>
__device__ __forceinline__ void add_bias(T* x, const float* bias, int rows, int columns) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long at = own_vector() * WIDTH;
    if (at >= static_cast<long long>(rows) * columns) { return; }
    auto values = load<WIDTH>(x + at);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) { values.at[i] = from_float<T>(to_float(values.at[i]) + bias[column_of(at, columns) + i]); }
    store(x + at, values);
}

template <typename T>
__device__ __forceinline__ void add(const T* a, const T* b, T* out, int rows, int columns) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long at = own_vector() * WIDTH;
    if (at >= static_cast<long long>(rows) * columns) { return; }
    auto values = load<WIDTH>(a + at);
    const auto other = load<WIDTH>(b + at);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) { values.at[i] = from_float<T>(to_float(values.at[i]) + to_float(other.at[i])); }
    store(out + at, values);
}

template <typename T, int WIDTH>
struct OneRow {
    using Raw = Vector<T, WIDTH>;
    const T* x;

    __device__ __forceinline__ Raw fetch(int column) const { return load<WIDTH>(x + column); }

    __device__ __forceinline__ void widen(const Raw& raw, int, float (&values)[WIDTH]) const {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { values[i] = to_float(raw.at[i]); }
    }
};

// A block a row, which is read from memory for the mean, for the moments about it, and to be written.
template <typename T>
__device__ __forceinline__ void layernorm(
    const T* x, const float* gamma, const float* beta, T* out, int hidden, float epsilon) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long start = static_cast<long long>(blockIdx.x) * hidden;
    normalise_streamed<WIDTH>(
        Norm{gamma, beta, hidden, epsilon}, OneRow<T, WIDTH>{x + start},
        [=](int column, const float(&values)[WIDTH]) { write_vector(out + start + column, values); });
}

// The threads of a block along x a row, which is read once and stays in their registers.
template <typename T>
__device__ __forceinline__ void layernorm_once(const T* x, T* out, int rows, const Norm& norm) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows) { return; }
    T* const target = out + row * norm.hidden;
    normalise<WIDTH>(norm, OneRow<T, WIDTH>{x + row * norm.hidden}, [=](int column, const float(&values)[WIDTH]) {
        write_vector(target + column, values);
    });
}

// Real = int4 * scale of its group of `group` rows and its column. Packed [k / 2, n]: the low four bits are the even row.
template <typename T>
__device__ __forceinline__ void unpack_int4(
    const unsigned char* packed, const float* scales, T* out, int k, int n, int group) {
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const long long at = own_vector() * WIDTH;
    const int pair = static_cast<int>(at / n), column = static_cast<int>(at % n);
    if (2 * pair >= k) { return; }
    const auto read = load<WIDTH>(packed + at);
    Vector<T, WIDTH> low, high;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        const float scale = scales[static_cast<long long>(2 * pair / group) * n + column + i];
        low.at[i] = from_float<T>((static_cast<int>(read.at[i] & 15u) - 8) * scale);
        high.at[i] = from_float<T>((static_cast<int>(read.at[i] >> 4) - 8) * scale);
    }
    store(out + static_cast<long long>(2 * pair) * n + column, low);
    store(out + static_cast<long long>(2 * pair + 1) * n + column, high);
}

// The sum of an int8 product, whose columns have steps of their own, and the residual stream, which stays in T.
template <typename T, int WIDTH>
struct MixedRow {
    struct Raw {
        Vector<int8, WIDTH> input;
        Vector<T, WIDTH> skip;
    };
    const int8* input;
    const T* skip;
    const float* steps;

    __device__ __forceinline__ Raw fetch(int column) const {
        return {load<WIDTH>(input + column), load<WIDTH>(skip + column)};
    }

    __device__ __forceinline__ void widen(const Raw& raw, int column, float (&values)[WIDTH]) const {
        float step[WIDTH];
        read_parameters(steps + column, step);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { values[i] = to_float(raw.input.at[i]) * step[i] + to_float(raw.skip.at[i]); }
    }
};

template <int WIDTH, typename T>
__device__ __forceinline__ void skip_layernorm_mixed(
    const MixedRow<T, WIDTH>& row, T* output, int8* rounded, const float* inverses, const Norm& norm) {
    normalise<WIDTH>(norm, row, [=](int column, float(&values)[WIDTH]) {
        write_vector(output + column, values);
        if (rounded == nullptr) { return; }
        float inverse[WIDTH];
        read_parameters(inverses + column, inverse);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { values[i] *= inverse[i]; }
        write_vector(rounded + column, values);
    });
}

}  // namespace probe

using namespace probe;

#define FOR_EACH_FORMAT(STEP) STEP(f32, float) STEP(f16, __half) STEP(bf16, __nv_bfloat16)

#define GATHER(SUFFIX, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) gather_qkv_##SUFFIX(                                 \
        const T* q, const T* k, const T* v, T* output, int rows, int hidden) {                             \
        after_previous();                                                                                  \
        gather(q, k, v, output, rows, hidden);                                                             \
    }
#define ADD_BIAS(SUFFIX, T)                                                                                \
    extern "C" __global__ void __launch_bounds__(256) add_bias_##SUFFIX(                                   \
        T* x, const float* bias, int rows, int columns) {                                                  \
        after_previous();                                                                                  \
        add_bias(x, bias, rows, columns);                                                                  \
    }
#define ADD(SUFFIX, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) add_##SUFFIX(                                        \
        const T* a, const T* b, T* output, int rows, int columns) {                                        \
        after_previous();                                                                                  \
        add(a, b, output, rows, columns);                                                                  \
    }
#define LAYERNORM(SUFFIX, T)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) layernorm_##SUFFIX(                                  \
        const T* x, const float* gamma, const float* beta, T* output, int hidden, float epsilon) {         \
        after_previous();                                                                                  \
        layernorm(x, gamma, beta, output, hidden, epsilon);                                                \
    }
#define LAYERNORM_ONCE(SUFFIX, T)                                                                          \
    extern "C" __global__ void __launch_bounds__(512) layernorm_once_##SUFFIX(                             \
        const T* x, const float* gamma, const float* beta, T* output, int rows, int hidden, float epsilon) { \
        after_previous();                                                                                    \
        layernorm_once(x, output, rows, Norm{gamma, beta, hidden, epsilon});                               \
    }
#define UNPACK(SUFFIX, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) unpack_int4_##SUFFIX(                                \
        const unsigned char* packed, const float* scales, T* output, int k, int n, int group) {            \
        after_previous();                                                                                  \
        unpack_int4(packed, scales, output, k, n, group);                                                  \
    }

FOR_EACH_FORMAT(GATHER)
FOR_EACH_FORMAT(ADD_BIAS)
FOR_EACH_FORMAT(ADD)
FOR_EACH_FORMAT(LAYERNORM)
FOR_EACH_FORMAT(LAYERNORM_ONCE)
FOR_EACH_FORMAT(UNPACK)

// int8 in and out, where every column has a step of its own; `inverses` are one over the output's.
extern "C" __global__ void __launch_bounds__(256) gelu_s8(
    const signed char* input, const float* steps, const float* inverses, signed char* output, int rows, int columns) {
    after_previous();
    constexpr int WIDTH = 16;
    const long long at = own_vector() * WIDTH;
    if (at >= static_cast<long long>(rows) * columns) { return; }
    const int column = column_of(at, columns);
    const auto values = load<WIDTH>(input + at);
    float step[WIDTH], inverse[WIDTH], made[WIDTH];
    read_parameters(steps + column, step);
    read_parameters(inverses + column, inverse);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) { made[i] = gelu_tanh(to_float(values.at[i]) * step[i]) * inverse[i]; }
    write_vector(output + at, made);
}

extern "C" __global__ void __launch_bounds__(256) quantise_columns_f16(
    const __half* input, const float* inverses, signed char* output, int rows, int columns) {
    after_previous();
    constexpr int WIDTH = 8;
    const long long at = own_vector() * WIDTH;
    if (at >= static_cast<long long>(rows) * columns) { return; }
    const auto values = load<WIDTH>(input + at);
    float inverse[WIDTH];
    read_parameters(inverses + column_of(at, columns), inverse);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) { inverse[i] *= to_float(values.at[i]); }
    write_vector(output + at, inverse);
}

// `rounded` (and with it `inverses`) may be null.
extern "C" __global__ void __launch_bounds__(512) skip_layernorm_s8_f16(
    const signed char* input, const float* steps, const __half* skip, const float* gamma, const float* beta,
    __half* output, const float* inverses, signed char* rounded, int rows, int hidden, float epsilon) {
    after_previous();
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows) { return; }
    const long long at = row * hidden;
    signed char* const target = rounded == nullptr ? nullptr : rounded + at;
    skip_layernorm_mixed(
        MixedRow<__half, 8>{input + at, skip + at, steps}, output + at, target, inverses,
        Norm{gamma, beta, hidden, epsilon});
}
