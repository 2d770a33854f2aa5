// One row normalised by the threads of a block along x: moments about the mean, in float32, so that a large mean beside
// a small variance costs nothing. Threads along y have rows of their own, and then x is one warp.
#pragma once

#include "common.cuh"

namespace probe {

constexpr int FEW = 8;    // values of a row that a thread keeps in registers,
constexpr int MANY = 32;  // at most; a longer row is read again for each moment

struct Norm {
    const float* gamma;  // [hidden]
    const float* beta;   // [hidden]
    int hidden;
    float epsilon;
};

// The mean is found twice: rounding in the first sum shifts it, the sum about it says by how much.
struct Moments {
    float mean;
    float shift;  // mean of (x - mean)
    float scale;  // 1 / sqrt(variance + epsilon)
};

__device__ __forceinline__ Moments moments_of(float mean, float sum, float squares, const Norm& norm) {
    const float shift = sum / norm.hidden;
    const float variance = fmaxf(squares / norm.hidden - shift * shift, 0.0f);
    return {mean, shift, 1.0f / sqrtf(variance + norm.epsilon)};
}

// WIDTH neighbouring parameters; `from` is as aligned as its column is.
template <int WIDTH>
__device__ __forceinline__ void read_parameters(const float* from, float (&values)[WIDTH]) {
    constexpr int PIECE = WIDTH < 4 ? 1 : 4;
#pragma unroll
    for (int start = 0; start < WIDTH; start += PIECE) {
        const auto piece = load<PIECE>(from + start);
#pragma unroll
        for (int i = 0; i < PIECE; ++i) { values[start + i] = piece.at[i]; }
    }
}

template <int WIDTH, typename Write>
__device__ __forceinline__ void write_normalised(
    float (&values)[WIDTH], int column, const Moments& moments, const Norm& norm, Write write) {
    float gamma[WIDTH], beta[WIDTH];
    read_parameters(norm.gamma + column, gamma);
    read_parameters(norm.beta + column, beta);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        values[i] = ((values[i] - moments.mean) - moments.shift) * moments.scale * gamma[i] + beta[i];
    }
    write(column, values);
}

// The row stays in registers between the first read and the last write. Up to eight loads of each input are under way
// before the first is waited for: that is what keeps the memory busy.
template <int WIDTH, int VALUES, typename Row, typename Write>
__device__ __forceinline__ void normalise_kept(const Norm& norm, const Row& row, Write write) {
    __shared__ float partial[3][WARP];
    constexpr int ITEMS = VALUES / WIDTH > 0 ? VALUES / WIDTH : 1;
    const int step = blockDim.x * WIDTH, first = threadIdx.x * WIDTH;
    constexpr int AHEAD = ITEMS < 8 ? ITEMS : 8;
    float values[ITEMS][WIDTH];
    float total = 0.0f;
#pragma unroll
    for (int group = 0; group < ITEMS; group += AHEAD) {
        typename Row::Raw raw[AHEAD];
#pragma unroll
        for (int item = 0; item < AHEAD; ++item) {
            const int column = first + (group + item) * step;
            if (column < norm.hidden) { raw[item] = row.fetch(column); }
        }
#pragma unroll
        for (int item = 0; item < AHEAD; ++item) {
            const int column = first + (group + item) * step;
            if (column < norm.hidden) {
                row.widen(raw[item], column, values[group + item]);
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) { total += values[group + item][i]; }
            }
        }
    }
    const float mean = block_reduce(total, partial[0], Add{}) / norm.hidden;
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (first + item * step < norm.hidden) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                const float away = values[item][i] - mean;
                sum += away;
                squares += away * away;
            }
        }
    }
    sum = block_reduce(sum, partial[1], Add{});
    squares = block_reduce(squares, partial[2], Add{});
    const Moments moments = moments_of(mean, sum, squares, norm);
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (first + item * step < norm.hidden) {
            write_normalised(values[item], first + item * step, moments, norm, write);
        }
    }
}

// Any length: read for the mean, for the moments about it, and to be written.
template <int WIDTH, typename Row, typename Write>
__device__ __forceinline__ void normalise_streamed(const Norm& norm, const Row& row, Write write) {
    __shared__ float partial[3][WARP];
    const int step = blockDim.x * WIDTH, first = threadIdx.x * WIDTH;
    float values[WIDTH];
    float total = 0.0f;
    for (int column = first; column < norm.hidden; column += step) {
        row.widen(row.fetch(column), column, values);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) { total += values[i]; }
    }
    const float mean = block_reduce(total, partial[0], Add{}) / norm.hidden;
    float sum = 0.0f, squares = 0.0f;
    for (int column = first; column < norm.hidden; column += step) {
        row.widen(row.fetch(column), column, values);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float away = values[i] - mean;
            sum += away;
            squares += away * away;
        }
    }
    sum = block_reduce(sum, partial[1], Add{});
    squares = block_reduce(squares, partial[2], Add{});
    const Moments moments = moments_of(mean, sum, squares, norm);
    for (int column = first; column < norm.hidden; column += step) {
        row.widen(row.fetch(column), column, values);
        write_normalised(values, column, moments, norm, write);
    }
}

// `row.fetch(column)` loads what WIDTH neighbours of this block's row are made of, `row.widen(raw, column, values)` makes
// them, `write(column, values)` takes the results.
template <int WIDTH, typename Row, typename Write>
__device__ __forceinline__ void normalise(const Norm& norm, const Row& row, Write write) {
    if (norm.hidden <= static_cast<int>(blockDim.x) * FEW) {
        normalise_kept<WIDTH, FEW>(norm, row, write);
    } else if (norm.hidden <= static_cast<int>(blockDim.x) * MANY) {
        normalise_kept<WIDTH, MANY>(norm, row, write);
    } else {
        normalise_streamed<WIDTH>(norm, row, write);
    }
}

template <int WIDTH, typename T>
__device__ __forceinline__ void write_vector(T* target, const float (&values)[WIDTH]) {
    Vector<T, WIDTH> made;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) { made.at[i] = from_float<T>(values[i]); }
    store(target, made);
}

}  // namespace probe
