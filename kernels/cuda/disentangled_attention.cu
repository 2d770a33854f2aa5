// DeBERTa's scores: out[i, j] = (c2c[i, j] + c2p[i, d] + p2c[j, d]) * factor, d the column of the distance i - j.
//
// c2c and out are [BN, S, S], c2p and p2c [BN, S, 2 span]. A block makes a tile of 32 x 32 in which only 63 distances
// occur: their columns are found once. Both gathers read along rows; the one of p2c is turned in shared memory.
#include "common.cuh"

namespace probe {

constexpr int TILE = 32;
constexpr int DISTANCES = 2 * TILE - 1;

// float64, so that a logarithm that should be whole is not rounded up to the next bucket.
__device__ __forceinline__ int bucket_of(int distance, int span) {
    const int middle = span / 2;
    const int near = abs(distance);
    if (near <= middle) { return distance; }
    const double base = log(static_cast<double>(middle));
    const double share = (log(static_cast<double>(near)) - base) / (log(2.0 * span - 1.0) - base) * (middle - 1);
    const int bucket = static_cast<int>(ceil(share - 1e-9)) + middle;
    return distance < 0 ? -bucket : bucket;
}

template <typename T>
__device__ __forceinline__ void disentangled_attention(
    const T* c2c, const T* c2p, const T* p2c, T* output, int sequence, int span, float factor, int bucketed) {
    __shared__ float turned[TILE][TILE + 1];  // p2c by key, query
    __shared__ int columns[DISTANCES];        // of distances first .. first + 62
    const int i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE;
    const int first = i0 - j0 - (TILE - 1);
    const long long plane = static_cast<long long>(blockIdx.z) * sequence;
    const int thread = threadIdx.y * TILE + threadIdx.x;
    if (thread < DISTANCES) {
        const int distance = first + thread;
        const int column = (bucketed ? bucket_of(distance, span) : distance) + span;
        columns[thread] = min(max(column, 0), 2 * span - 1);
    }
    __syncthreads();
    const int i_read = i0 + threadIdx.x;
    for (int row = threadIdx.y; row < TILE; row += blockDim.y) {
        const int j = j0 + row;
        if (j < sequence && i_read < sequence) {
            turned[row][threadIdx.x] = to_float(p2c[(plane + j) * 2 * span + columns[i_read - j - first]]);
        }
    }
    __syncthreads();
    const int j = j0 + threadIdx.x;
    for (int row = threadIdx.y; row < TILE; row += blockDim.y) {
        const int i = i0 + row;
        if (i < sequence && j < sequence) {
            const float position = to_float(c2p[(plane + i) * 2 * span + columns[i - j - first]]);
            const long long at = (plane + i) * sequence + j;
            output[at] = from_float<T>((to_float(c2c[at]) + position + turned[threadIdx.x][row]) * factor);
        }
    }
}

}  // namespace probe

using namespace probe;

extern "C" __global__ void __launch_bounds__(256) disentangled_attention_f32(
    const float* c2c, const float* c2p, const float* p2c, float* output, int sequence, int span, float factor,
    int bucketed) {
    after_previous();
    disentangled_attention(c2c, c2p, p2c, output, sequence, span, factor, bucketed);
}

extern "C" __global__ void __launch_bounds__(256) disentangled_attention_f16(
    const __half* c2c, const __half* c2p, const __half* p2c, __half* output, int sequence, int span, float factor,
    int bucketed) {
    after_previous();
    disentangled_attention(c2c, c2p, p2c, output, sequence, span, factor, bucketed);
}

extern "C" __global__ void __launch_bounds__(256) disentangled_attention_bf16(
    const __nv_bfloat16* c2c, const __nv_bfloat16* c2p, const __nv_bfloat16* p2c, __nv_bfloat16* output, int sequence,
    int span, float factor, int bucketed) {
    after_previous();
    disentangled_attention(c2c, c2p, p2c, output, sequence, span, factor, bucketed);
}
