// Fused attention for INT8: int8 merged product in, int8 context out, probabilities in int8 steps of `dq_probs`.
//
// A fixed step needs the final probabilities, so the keys are gone over twice: first for the largest score and the sum,
// then for probabilities and context. Both products are exact: Q K^T in int32, and probabilities (at most 127) times V
// as float16 summed in float32, which holds every integer below 2^24.
//
// The merged product and the context are row-major, or both in kCHW32: `row_stride`, `context_stride` and `panel_stride`
// say which.
//
// Macros: HEAD_SIZE (32, 64, 96, 128). A block of 128 threads takes 64 queries of one head.
#include "attention.cuh"

namespace {

constexpr int HEAD = HEAD_SIZE;
constexpr int KEYS = 64;
constexpr int THREADS = 128;

using Bytes = tiles::Tile<signed char, 64, HEAD>;  // queries, keys, and the context on its way out
using Values = tiles::Tile<tiles::Half, KEYS, HEAD>;

// Rows `from` .. of V, widened to float16; rows past `count` become zeros.
__device__ __forceinline__ void load_values(Values tile, const signed char* matrix, long long pitch, int from,
                                            int count, attention::Panels place) {
    for (int i = threadIdx.x; i < KEYS * Values::CHUNKS; i += THREADS) {
        const int row = i / Values::CHUNKS, chunk = i % Values::CHUNKS;
        uint2 raw = make_uint2(0, 0);
        if (from + row < count) raw = *reinterpret_cast<const uint2*>(matrix + (from + row) * pitch + place(8 * chunk));
        const unsigned words[2] = {raw.x, raw.y};
        unsigned wide[4];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const unsigned two = words[pair / 2] >> pair % 2 * 16;
            const float low = float((signed char)(two & 0xff)), high = float((signed char)(two >> 8 & 0xff));
            wide[pair] = tiles::pack<tiles::Half>(low, high);
        }
        *reinterpret_cast<uint4*>(tile.at(row, chunk)) = make_uint4(wide[0], wide[1], wide[2], wide[3]);
    }
}

__device__ __forceinline__ void scores_of(float (&scores)[KEYS / 2], Bytes queries, Bytes keys, int from, int count) {
    int sums[KEYS / 2];
    tiles::warp::multiply_transposed<signed char, KEYS, HEAD>(sums, queries, keys);
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) scores[i] = float(sums[i]);
    if (from + KEYS > count) attention::mask_keys<KEYS>(scores, from, count, attention::negative_infinity());
}

__device__ __forceinline__ signed char saturate(float x) {
    return (signed char)(int)rintf(fminf(fmaxf(x, -128.f), 127.f));
}

// 64 rows of context, gathered in the tile of their queries and written in 16-byte chunks.
__device__ __forceinline__ void write_context(const float (&context)[HEAD / 2], float factor, Bytes tile,
                                              signed char* target, long long pitch, int rows,
                                              attention::Panels place) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
#pragma unroll
    for (int i = 0; i < HEAD / 4; ++i) {
        const int column = i / 2 * 8 + lane % 4 * 2;
        unsigned char* chunk = tile.at(warp_row + lane / 4 + i % 2 * 8, column / 16) + column % 16;
        chunk[0] = (unsigned char)saturate(context[2 * i] * factor);
        chunk[1] = (unsigned char)saturate(context[2 * i + 1] * factor);
    }
    __syncwarp();
    for (int i = lane; i < 16 * Bytes::CHUNKS; i += 32) {
        const int row = warp_row + i / Bytes::CHUNKS, chunk = i % Bytes::CHUNKS;
        if (row < rows)
            *reinterpret_cast<uint4*>(target + row * pitch + place(chunk * 16)) =
                *reinterpret_cast<const uint4*>(tile.at(row, chunk));
    }
}

}  // namespace

// Grid: heads, tiles of 64 queries of the longest sequence, batch. `scale` is input_scale^2 log2(e) / sqrt(H),
// `quantum` 1 / dq_probs, `output_factor` dq_probs * input_scale / output_scale. Row-major: `row_stride` 3E,
// `context_stride` E, `panel_stride` 32; kCHW32: 32, 32 and 32 times the tokens.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_int8(const signed char* __restrict__ qkv, signed char* __restrict__ out, const int* __restrict__ valid,
                   const int* __restrict__ starts, int sequence, int head_stride, int part_stride, int row_stride,
                   int context_stride, int panel_stride, float scale, float quantum, float output_factor) {
    probe::after_previous();
    extern __shared__ __align__(1024) unsigned char memory[];
    const Bytes queries{memory}, keys{memory + Bytes::BYTES};
    const Values values{memory + 2 * Bytes::BYTES};
    const int head = blockIdx.x;
    const attention::Sequence s = attention::sequence_of(blockIdx.z, gridDim.z, sequence, valid, starts);
    const int first_query = blockIdx.y * 64;
    if (first_query >= s.queries) return;

    const attention::Panels place{panel_stride};
    const long long pitch = (long long)s.step * row_stride, out_pitch = (long long)s.step * context_stride;
    const signed char* q = qkv + (long long)s.first * row_stride + (long long)head * head_stride;
    const signed char* k = q + part_stride;
    const signed char* v = k + part_stride;

    attention::load_rows<THREADS>(queries, q, pitch, first_query, s.queries, place);
    attention::Softmax softmax{scale};
    float scores[KEYS / 2];
    float sum[4] = {};  // of this thread's columns, as accumulators lie: rows 0 0 1 1
    for (int from = 0; from < s.keys; from += KEYS) {
        attention::load_rows<THREADS>(keys, k, pitch, from, s.keys, place);
        tiles::commit_copies();
        tiles::wait_copies<0>();
        __syncthreads();
        scores_of(scores, queries, keys, from, s.keys);
        attention::scale_rows(sum, softmax.raise(scores));
        softmax.exponentiate<0, KEYS / 2>(scores);
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i) sum[i % 4] += scores[i];
        __syncthreads();  // everyone has read the keys
    }
    float steps[2];
    for (int r = 0; r < 2; ++r) steps[r] = quantum / attention::quad_sum(sum[2 * r] + sum[2 * r + 1]);
    float context[HEAD / 2] = {};
    for (int from = 0; from < s.keys; from += KEYS) {
        attention::load_rows<THREADS>(keys, k, pitch, from, s.keys, place);
        tiles::commit_copies();
        load_values(values, v, pitch, from, s.keys, place);
        tiles::wait_copies<0>();
        __syncthreads();
        scores_of(scores, queries, keys, from, s.keys);
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i) {
            const float probability = exp2f((scores[i] - softmax.largest[i / 2 % 2]) * scale);
            scores[i] = fminf(rintf(probability * steps[i / 2 % 2]), 127.f);
        }
        unsigned packed[KEYS / 4];
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) packed[i] = tiles::pack<tiles::Half>(scores[2 * i], scores[2 * i + 1]);
        tiles::warp::multiply_add<tiles::Half, HEAD>(context, packed, values, 0);
        __syncthreads();  // everyone has read keys and values
    }
    tiles::commit_copies();
    tiles::wait_copies<0>();  // with no key at all, the queries may still be on their way
    __syncthreads();
    out += (long long)s.first * context_stride + head * place(HEAD) + first_query * out_pitch;
    write_context(context, output_factor, queries, out, out_pitch, s.queries - first_query, place);
}
