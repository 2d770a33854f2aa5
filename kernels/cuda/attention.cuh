// What the attention kernels share: where a sequence's rows lie, tiles filled from them, softmax over fragments.
#pragma once

#include "overlap.cuh"
#include "tiles.cuh"

namespace attention {

// Every attention kernel reads the merged product: element [t, head, part, :], part 0 Q, 1 K, 2 V, is at
// row(t) * 3 * heads * H + head * head_stride + part * part_stride, for [N, 3, H] rows ("no transposes") and [3, N, H].

// One sequence of the batch: token t is row first + t * step of [S * B, 3E] or [T, 3E].
struct Sequence {
    int first;
    int step;
    int queries;
    int keys;
};

// Fixed length: [S, B, ...], `valid` [B] or null counts the keys that are not padding. Varlen: `starts` [B + 1].
__device__ __forceinline__ Sequence sequence_of(int b, int batch, int sequence, const int* valid, const int* starts) {
    if (starts != nullptr) {
        const int length = min(starts[b + 1] - starts[b], sequence);
        return {starts[b], 1, length, length};
    }
    return {b, batch, sequence, valid != nullptr ? max(0, min(valid[b], sequence)) : sequence};
}

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }

// Where a column lies in its row, in elements from the row's start: beside the one before, or (TensorRT's kCHW32) in
// panels of 32 columns, each of them all rows long.
struct Adjacent {
    __device__ __forceinline__ int operator()(int column) const { return column; }
};

struct Panels {
    long long stride;
    __device__ __forceinline__ long long operator()(int column) const { return column / 32 * stride + column % 32; }
};

// Starts the copy of rows `from` .. of a matrix of `count` rows, `pitch` elements apart; rows past it become zeros.
template <int THREADS, typename T, int ROWS, int COLUMNS, typename Columns = Adjacent>
__device__ __forceinline__ void load_rows(tiles::Tile<T, ROWS, COLUMNS> tile, const T* matrix, long long pitch,
                                          int from, int count, Columns place = {}) {
    using Layout = tiles::Tile<T, ROWS, COLUMNS>;
    constexpr int PER_CHUNK = 16 / int(sizeof(T));
    constexpr int STEPS = (ROWS * Layout::CHUNKS + THREADS - 1) / THREADS;
    constexpr int ROW_STEP = THREADS / Layout::CHUNKS;
    // Where the swizzle repeats from step to step, there is one address, and additions.
    constexpr bool REGULAR = THREADS % Layout::CHUNKS == 0 && ROW_STEP * Layout::WIDTH % 1024 == 0;
    if (REGULAR && from + ROWS <= count) {
        const int row = threadIdx.x / Layout::CHUNKS, chunk = threadIdx.x % Layout::CHUNKS;
        unsigned char* target = tile.at(row, chunk);
        const T* source = matrix + (from + row) * pitch + place(chunk * PER_CHUNK);
#pragma unroll
        for (int step = 0; step < STEPS; ++step, source += ROW_STEP * pitch)
            if (ROWS % ROW_STEP == 0 || row + step * ROW_STEP < ROWS)
                tiles::copy_async(target + step * ROW_STEP * Layout::WIDTH, source);
    } else {
#pragma unroll 4
        for (int step = 0; step < STEPS; ++step) {
            const int index = threadIdx.x + step * THREADS;
            const int row = index / Layout::CHUNKS, chunk = index % Layout::CHUNKS;
            if (ROWS * Layout::CHUNKS % THREADS != 0 && row >= ROWS) break;
            const bool inside = from + row < count;
            const T* source = matrix + (from + row) * pitch + place(chunk * PER_CHUNK);
            tiles::copy_async(tile.at(row, chunk), inside ? source : matrix, inside);
        }
    }
}

// The four threads that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Running softmax of this thread's two rows (lane / 4 and 8 further) of scores, in base 2.
struct Softmax {
    float scale;  // log2(e) / sqrt(H), by which scores are multiplied
    float largest[2] = {negative_infinity(), negative_infinity()};
    float shift[2];

    // Takes new scores into account. Probabilities are relative to the largest score so far; returned is by what those
    // that were summed up before have to be multiplied, for each of the two rows.
    template <int COUNT>
    __device__ __forceinline__ float2 raise(float (&scores)[COUNT]) {
        float top[2] = {largest[0], largest[1]};
#pragma unroll
        for (int i = 0; i < COUNT; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
        float factor[2];
        bool far = false;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            top[r] = quad_max(top[r]);
            factor[r] = tiles::exp2_fast((largest[r] - top[r]) * scale);
            largest[r] = top[r];
            shift[r] = top[r] * scale;
            far |= fabsf(shift[r]) > 1024.f;
        }
        // score * scale - shift is one instruction, but what `shift` was rounded by remains: too much of huge scores.
        if (__any_sync(0xffffffff, far)) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) scores[i] -= largest[i / 2 % 2];
            shift[0] = shift[1] = 0.f;
        }
        return make_float2(factor[0], factor[1]);
    }

    // Scores FIRST .. of COUNT, all of them last given to `raise`, become probabilities.
    template <int FIRST, int COUNT, int ALL>
    __device__ __forceinline__ void exponentiate(float (&scores)[ALL]) const {
#pragma unroll
        for (int i = FIRST; i < FIRST + COUNT; ++i)
            scores[i] = tiles::exp2_fast(fmaf(scores[i], scale, -shift[i / 2 % 2]));
    }
};

// Multiplies a thread's two rows of an accumulator.
template <int COUNT>
__device__ __forceinline__ void scale_rows(float (&d)[COUNT], float2 factors) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) d[i] *= i / 2 % 2 ? factors.y : factors.x;
}

// Keys from `keys` on do not count; `from` is the tile's first key.
template <int KEYS, typename Score>
__device__ __forceinline__ void mask_keys(Score (&scores)[KEYS / 2], int from, int keys, Score masked) {
    const int column = from + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i)
        if (column + 8 * (i / 4) + i % 2 >= keys) scores[i] = masked;
}

}  // namespace attention
