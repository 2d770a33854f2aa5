// Fused attention for float32, in float32 throughout: no matrix units, whose TF32 keeps 10 bits.
//
// Macros: HEAD_SIZE (32, 64, 96, 128). A block of 16 x 16 threads takes 64 queries of one head and goes over the keys
// 32 at a time; thread (x, y) computes the scores of queries 4y..4y+3 with keys x and x + 16, and of those queries'
// context the columns x, x + 16, ...
#include "attention.cuh"

namespace {

constexpr int HEAD = HEAD_SIZE;
constexpr int QUERIES = 64;
constexpr int KEYS = 32;
constexpr int THREADS = 256;
constexpr int COLUMNS = HEAD / 16;   // of the context, per thread
constexpr int PITCH = HEAD + 4;      // of queries and keys: rows read side by side fall into different banks
constexpr int PROBABILITY_PITCH = KEYS + 1;

// Rows `from` .. of a matrix of `count` rows; rows past it become zeros.
template <int ROWS, int TARGET_PITCH>
__device__ __forceinline__ void load(float* target, const float* matrix, long long pitch, int from, int count) {
    for (int i = threadIdx.x; i < ROWS * (HEAD / 4); i += THREADS) {
        const int row = i / (HEAD / 4), column = i % (HEAD / 4) * 4;
        float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
        if (from + row < count) value = *reinterpret_cast<const float4*>(matrix + (from + row) * pitch + column);
        *reinterpret_cast<float4*>(target + row * TARGET_PITCH + column) = value;
    }
}

__device__ __forceinline__ float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }

// Over the 16 threads that share a row.
template <typename Combine>
__device__ __forceinline__ float row_reduce(float x, Combine combine) {
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) x = combine(x, __shfl_xor_sync(0xffffffff, x, distance));
    return x;
}

}  // namespace

// Grid: heads, tiles of 64 queries of the longest sequence, batch. `scale` is log2(e) / sqrt(H).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_fp32(const float* __restrict__ qkv, float* __restrict__ out, const int* __restrict__ valid,
                   const int* __restrict__ starts, int sequence, int head_stride, int part_stride, float scale) {
    probe::after_previous();
    extern __shared__ __align__(1024) unsigned char memory[];
    float* const queries = reinterpret_cast<float*>(memory);
    float* const keys = queries + QUERIES * PITCH;
    float* const values = keys + KEYS * PITCH;
    float* const probabilities = values + KEYS * HEAD;
    const int heads = gridDim.x, head = blockIdx.x, x = threadIdx.x % 16, y = threadIdx.x / 16;
    const attention::Sequence s = attention::sequence_of(blockIdx.z, gridDim.z, sequence, valid, starts);
    const int first_query = blockIdx.y * QUERIES;
    if (first_query >= s.queries) return;

    const long long out_pitch = (long long)s.step * heads * HEAD, pitch = 3 * out_pitch;
    const float* q = qkv + 3LL * s.first * heads * HEAD + (long long)head * head_stride;
    const float* k = q + part_stride;
    const float* v = k + part_stride;

    load<QUERIES, PITCH>(queries, q, pitch, first_query, s.queries);
    float context[4][COLUMNS] = {};
    float largest[4], sum[4] = {};
    for (float& l : largest) l = attention::negative_infinity();
    for (int from = 0; from < s.keys; from += KEYS) {
        load<KEYS, PITCH>(keys, k, pitch, from, s.keys);
        load<KEYS, HEAD>(values, v, pitch, from, s.keys);
        __syncthreads();
        float scores[4][2] = {};
#pragma unroll 4
        for (int d = 0; d < HEAD; d += 4) {
            const float4 right[2] = {four(keys + x * PITCH + d), four(keys + (x + 16) * PITCH + d)};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float4 left = four(queries + (4 * y + i) * PITCH + d);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    scores[i][j] = fmaf(left.x, right[j].x, scores[i][j]);
                    scores[i][j] = fmaf(left.y, right[j].y, scores[i][j]);
                    scores[i][j] = fmaf(left.z, right[j].z, scores[i][j]);
                    scores[i][j] = fmaf(left.w, right[j].w, scores[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 2; ++j)
                if (from + x + 16 * j >= s.keys) scores[i][j] = attention::negative_infinity();
            const float top = row_reduce(fmaxf(largest[i], fmaxf(scores[i][0], scores[i][1])),
                                         [](float a, float b) { return fmaxf(a, b); });
            const float correction = exp2f((largest[i] - top) * scale);
            largest[i] = top;
            sum[i] *= correction;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) context[i][c] *= correction;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float p = exp2f((scores[i][j] - top) * scale);
                sum[i] += p;
                probabilities[(4 * y + i) * PROBABILITY_PITCH + x + 16 * j] = p;
            }
        }
        __syncwarp();  // a row's probabilities are written and read by the same 16 threads
#pragma unroll 4
        for (int key = 0; key < KEYS; ++key) {
            float p[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) p[i] = probabilities[(4 * y + i) * PROBABILITY_PITCH + key];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const float value = values[key * HEAD + x + 16 * c];
#pragma unroll
                for (int i = 0; i < 4; ++i) context[i][c] = fmaf(p[i], value, context[i][c]);
            }
        }
        __syncthreads();  // everyone has read keys, values and probabilities
    }
    out += ((long long)s.first * heads + head) * HEAD + first_query * out_pitch;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float total = row_reduce(sum[i], [](float a, float b) { return a + b; });
        const float factor = s.keys == 0 ? 0.f : 1.f / total;
        if (first_query + 4 * y + i >= s.queries) continue;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) out[(4 * y + i) * out_pitch + x + 16 * c] = context[i][c] * factor;
    }
}
