// Fused attention for 16-bit elements: softmax(Q K^T / sqrt(H)) V from the merged product [S, B, 3E] or [T, 3E].
//
// A block takes one head, 64 queries for each warpgroup, and goes over the keys TILE_KEYS at a time, STAGES tiles of
// keys and values in flight. While the matrix units multiply the first half of a tile's probabilities, the exponentials
// of the second half are taken. Statistics and sums are float32; probabilities are rounded to the element type, as the
// matrix units ask for. A sequence without a valid key gives zeros.
//
// Product and context may be int8 in memory (STORED): its integers are ELEMENTs exactly, so the products are as they were.
//
// Macros: ELEMENT (tiles::Half, tiles::BFloat16), STORED (ELEMENT, or signed char with tiles::Half), HEAD_SIZE and TILE_KEYS (32, 64, 96, 128), STAGES, WARPGROUPS, BLOCKS
// (of a multiprocessor, at least), RESIDENT (1: no sequence has more keys than the stages hold), WARPGROUP_MATRIX (1:
// wgmma, 0: mma.sync).
#include "attention.cuh"

#ifndef STORED
#define STORED ELEMENT
#endif

#if WARPGROUP_MATRIX
namespace matrix = tiles::warpgroup;
#else
namespace matrix = tiles::warp;
#endif

namespace {

constexpr int HEAD = HEAD_SIZE;
constexpr int KEYS = TILE_KEYS;
constexpr int UNROLLED_STAGES = STAGES > 3 ? 1 : STAGES;
constexpr int THREADS = 128 * WARPGROUPS;
constexpr int QUERIES = 64 * WARPGROUPS;

using Queries = tiles::Tile<ELEMENT, 64, HEAD>;
using Keys = tiles::Tile<ELEMENT, KEYS, HEAD>;
using Bytes = tiles::Tile<signed char, 64, HEAD>;
using Gathered = tiles::Tile<STORED, 64, HEAD>;  // where the queries were

// Shared memory: the queries of each warpgroup, keys and values of each stage, ones.
struct Shared {
    unsigned char* base;
    __device__ Queries queries(int warpgroup) const { return {base + warpgroup * Queries::BYTES}; }
    __device__ Keys keys(int stage) const { return {base + WARPGROUPS * Queries::BYTES + 2 * stage * Keys::BYTES}; }
    __device__ Keys values(int stage) const { return {keys(stage).base + Keys::BYTES}; }
    __device__ unsigned char* ones() const { return keys(STAGES).base; }  // tiles::ONES_BYTES of them
};

// Waits until all but PENDING groups of copies are there, for every thread and for the matrix units.
template <int PENDING>
__device__ __forceinline__ void arrive() {
    tiles::wait_copies<PENDING>();
#if WARPGROUP_MATRIX
    matrix::publish();
#endif
    __syncthreads();
}

// What the matrix units sum up for 64 queries: probabilities times values, and (in every column) probabilities alone.
struct Sums {
    float context[HEAD / 2] = {};
    float probabilities[4] = {};
};

// Adds half of a tile's keys; it may still be running afterwards.
template <int PART>
__device__ __forceinline__ void add_half(Sums& sums, unsigned (&packed)[KEYS / 8], float (&scores)[KEYS / 2],
                                         const attention::Softmax& softmax, const Shared& shared, int stage) {
    constexpr int FIRST = PART * KEYS / 4;
    softmax.exponentiate<FIRST, KEYS / 4>(scores);
#pragma unroll
    for (int i = 0; i < KEYS / 8; ++i)
        packed[i] = tiles::pack<ELEMENT>(scores[FIRST + 2 * i], scores[FIRST + 2 * i + 1]);
    matrix::multiply_add<ELEMENT, HEAD>(sums.context, packed, shared.values(stage), PART * KEYS / 32);
    matrix::add_rows<ELEMENT>(sums.probabilities, packed, shared.ones());
}

// Four int8 as float16: with the first bit turned, a byte b is the low half of the float16 1024 + b.
__device__ __forceinline__ uint2 widened(unsigned four) {
    const unsigned bytes = four ^ 0x80808080u, offset = 0x64806480u;  // 1152, twice
    unsigned wide[2] = {__byte_perm(bytes, 0x64646464u, 0x4140), __byte_perm(bytes, 0x64646464u, 0x4342)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const __half2 pair = __hsub2(*reinterpret_cast<__half2*>(wide + i), *reinterpret_cast<const __half2*>(&offset));
        wide[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
    return make_uint2(wide[0], wide[1]);
}

// Rows `from` .. of a matrix of `count` rows into a tile; rows past it become zeros.
template <int ROWS>
__device__ __forceinline__ void fill(tiles::Tile<ELEMENT, ROWS, HEAD> tile, const ELEMENT* matrix, long long pitch,
                                     int from, int count) {
    attention::load_rows<THREADS>(tile, matrix, pitch, from, count);
}

// The same of int8: through registers, several loads under way before the first is waited for.
template <int ROWS>
__device__ __forceinline__ void fill(tiles::Tile<ELEMENT, ROWS, HEAD> tile, const signed char* matrix, long long pitch,
                                     int from, int count) {
    constexpr int CHUNKS = tiles::Tile<ELEMENT, ROWS, HEAD>::CHUNKS;
    constexpr int STEPS = (ROWS * CHUNKS + THREADS - 1) / THREADS, AHEAD = STEPS < 8 ? STEPS : 8;
#pragma unroll
    for (int start = 0; start < STEPS; start += AHEAD) {
        uint2 raw[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int index = threadIdx.x + (start + i) * THREADS, row = from + index / CHUNKS;
            raw[i] = make_uint2(0, 0);
            if (index < ROWS * CHUNKS && row < count)
                raw[i] = *reinterpret_cast<const uint2*>(matrix + row * pitch + index % CHUNKS * 8);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int index = threadIdx.x + (start + i) * THREADS;
            if (index >= ROWS * CHUNKS) break;
            const uint2 low = widened(raw[i].x), high = widened(raw[i].y);
            *reinterpret_cast<uint4*>(tile.at(index / CHUNKS, index % CHUNKS)) =
                make_uint4(low.x, low.y, high.x, high.y);
        }
    }
}

// Two neighbours of a row of the context, in the tile that it is gathered in.
__device__ __forceinline__ void place(Queries tile, int row, int column, float left, float right) {
    *reinterpret_cast<unsigned*>(tile.at(row, column / 8) + column % 8 * 2) = tiles::pack<ELEMENT>(left, right);
}

__device__ __forceinline__ int saturated(float x) { return __float2int_rn(fminf(fmaxf(x, -128.f), 127.f)); }

__device__ __forceinline__ void place(Bytes tile, int row, int column, float left, float right) {
    *reinterpret_cast<unsigned short*>(tile.at(row, column / 16) + column % 16) =
        (unsigned short)((saturated(left) & 0xff) | saturated(right) << 8);
}

// Normalises 64 rows of context, gathers them where their queries were, and writes whole 16-byte chunks.
template <typename Tile>
__device__ __forceinline__ void write_context(const Sums& sums, Tile tile, STORED* target, long long pitch, int rows,
                                              float scale) {
    constexpr int PER_CHUNK = 16 / int(sizeof(STORED));
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x % 128 / 32 * 16;
    const float factor[2] = {scale / sums.probabilities[0], scale / sums.probabilities[2]};
#pragma unroll
    for (int i = 0; i < HEAD / 4; ++i) {
        const float f = factor[i % 2];
        place(tile, warp_row + lane / 4 + i % 2 * 8, i / 2 * 8 + lane % 4 * 2, sums.context[2 * i] * f,
              sums.context[2 * i + 1] * f);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * Tile::CHUNKS; i += 32) {
        const int row = warp_row + i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
        if (row < rows)
            *reinterpret_cast<uint4*>(target + row * pitch + chunk * PER_CHUNK) =
                *reinterpret_cast<const uint4*>(tile.at(row, chunk));
    }
}

__device__ __forceinline__ void write_zeros(STORED* target, long long pitch, int rows) {
    constexpr int PER_CHUNK = 16 / int(sizeof(STORED)), CHUNKS = HEAD / PER_CHUNK;
    for (int i = threadIdx.x; i < rows * CHUNKS; i += THREADS)
        *reinterpret_cast<uint4*>(target + i / CHUNKS * pitch + i % CHUNKS * PER_CHUNK) = make_uint4(0, 0, 0, 0);
}

}  // namespace

// Grid: heads, tiles of queries of the longest sequence, batch. `scale` is log2(e) / sqrt(H), of int8 times the square of
// a step; the context is multiplied by `factor`, of int8 the input's step over the context's, else 1.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_16bit(const STORED* __restrict__ qkv, STORED* __restrict__ out, const int* __restrict__ valid,
                    const int* __restrict__ starts, int sequence, int head_stride, int part_stride, float scale,
                    float factor) {
    probe::after_previous();
    extern __shared__ __align__(1024) unsigned char memory[];
    const Shared shared{memory};
    const int heads = gridDim.x, head = blockIdx.x;
    const attention::Sequence s = attention::sequence_of(blockIdx.z, gridDim.z, sequence, valid, starts);
    const int first_query = blockIdx.y * QUERIES;
    if (first_query >= s.queries) return;

    const long long out_pitch = (long long)s.step * heads * HEAD, pitch = 3 * out_pitch;
    const auto context_of = [&](int query) {
        return out + ((long long)s.first * heads + head) * HEAD + query * out_pitch;
    };
    if (s.keys == 0) return write_zeros(context_of(first_query), out_pitch, min(QUERIES, s.queries - first_query));

    // Groups of copies: queries and the first keys, the first values, the second keys, ...; a group may be empty.
    const STORED* const q = qkv + 3LL * s.first * heads * HEAD + (long long)head * head_stride;
    const STORED* const k = q + part_stride;
    const STORED* const v = k + part_stride;
    const auto load = [&](int from, int stage) {
        if (from < s.keys) fill(shared.keys(stage), k, pitch, from, s.keys);
        tiles::commit_copies();
        if (from < s.keys) fill(shared.values(stage), v, pitch, from, s.keys);
        tiles::commit_copies();
    };
#pragma unroll
    for (int w = 0; w < WARPGROUPS; ++w)
        fill(shared.queries(w), q, pitch, first_query + 64 * w, s.queries);
#pragma unroll UNROLLED_STAGES
    for (int stage = 0; stage < STAGES; ++stage) load(stage * KEYS, stage);

    if (threadIdx.x < tiles::ONES_BYTES / 4)
        reinterpret_cast<unsigned*>(shared.ones())[threadIdx.x] = tiles::pack<ELEMENT>(1.f, 1.f);

    const int warpgroup = WARPGROUPS == 1 ? 0 : __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    attention::Softmax softmax{scale};
    Sums sums;
#pragma unroll 1
    for (int from = 0, stage = 0; from < s.keys; from += KEYS) {
        arrive<2 * STAGES - 1>();
        float scores[KEYS / 2];
        matrix::multiply_transposed<ELEMENT, KEYS, HEAD>(scores, shared.queries(warpgroup), shared.keys(stage));
        matrix::wait<0>(scores);
        if (from + KEYS > s.keys) attention::mask_keys<KEYS>(scores, from, s.keys, attention::negative_infinity());
        const float2 factors = softmax.raise(scores);
        if (from > 0) {
            attention::scale_rows(sums.context, factors);
            attention::scale_rows(sums.probabilities, factors);
        }
        arrive<2 * STAGES - 2>();
        unsigned packed[2][KEYS / 8];
        add_half<0>(sums, packed[0], scores, softmax, shared, stage);
        add_half<1>(sums, packed[1], scores, softmax, shared, stage);
        matrix::wait<0>(sums.context);
        matrix::wait<0>(sums.probabilities);
#if RESIDENT
        tiles::commit_copies();
        tiles::commit_copies();
#else
        if (from + STAGES * KEYS < s.keys) __syncthreads();  // everyone has read this stage
        load(from + STAGES * KEYS, stage);
#endif
        if (++stage == STAGES) stage = 0;
    }
    __syncthreads();  // everyone has read the queries
    const int first_row = first_query + 64 * warpgroup;
    unsigned char* const base = shared.queries(warpgroup).base;
    write_context(sums, Gathered{base}, context_of(first_row), out_pitch, s.queries - first_row, factor);
}
