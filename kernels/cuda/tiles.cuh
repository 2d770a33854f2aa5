// Tiles of shared memory and the matrix units that read them: PTX on the GPU, plain C++ under PROBE_EMULATION.
//
// Two engines with one interface and one distribution of the results over threads (that of mma.m16n8k16's C):
//   warp::       mma.sync, compute capability 8.0 and later
//   warpgroup::  wgmma, compute capability 9.0 (compiled for sm_90a), the four warps of a warpgroup in step
// In both, 128 threads own 64 rows: warp w owns rows 16w..16w+15, and of an accumulator `float d[N / 2]` element
// i of lane l stands in row 16w + l/4 + (i % 4 < 2 ? 0 : 8) and column 8 * (i / 4) + 2 * (l % 4) + i % 2.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace tiles {

using Half = __half;
using BFloat16 = __nv_bfloat16;

// ROWS x COLUMNS elements in shared memory, without bank conflicts for rows read 16 bytes at a time.
//
// A row is cut into blocks of WIDTH bytes; the rows of a block follow one another, blocks follow one another. The
// 16-byte chunks of a row are exchanged by an exclusive-or with address bits 7 and up: the layout that wgmma's
// descriptors call "128-byte" (64-, 32-byte) swizzle. `base` is a multiple of 1024 bytes.
template <typename T, int ROWS_, int COLUMNS_>
struct Tile {
    static constexpr int ROWS = ROWS_;
    static constexpr int COLUMNS = COLUMNS_;
    static constexpr int ROW_BYTES = COLUMNS * int(sizeof(T));
    static constexpr int WIDTH = ROW_BYTES % 128 == 0 ? 128 : ROW_BYTES % 64 == 0 ? 64 : 32;
    static constexpr int BLOCK_BYTES = ROWS * WIDTH;
    static constexpr int BYTES = ROWS * ROW_BYTES;
    static constexpr int CHUNKS = ROW_BYTES / 16;  // of 16 bytes, in a row
    static_assert(ROW_BYTES % 32 == 0 && BLOCK_BYTES % 1024 == 0, "a tile is made of whole swizzle atoms");

    unsigned char* base;

    static __device__ __forceinline__ int offset(int row, int chunk) {
        constexpr int WIDE = WIDTH / 16;
        const int exchanged = (chunk % WIDE) ^ ((row * WIDTH >> 7) & (WIDE - 1));
        return chunk / WIDE * BLOCK_BYTES + row * WIDTH + exchanged * 16;
    }

    __device__ __forceinline__ unsigned char* at(int row, int chunk) const { return base + offset(row, chunk); }
};

}  // namespace tiles

#ifdef PROBE_EMULATION
#include "tiles_emulation.cuh"
#else
#include "tiles_ptx.cuh"
#endif

namespace tiles {

// Two floats as a register of two T, the first in the low half: a piece of an A or B fragment.
template <typename T>
__device__ __forceinline__ unsigned pack(float low, float high);

template <>
__device__ __forceinline__ unsigned pack<Half>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

template <>
__device__ __forceinline__ unsigned pack<BFloat16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

constexpr int ONES_BYTES = 256;  // of shared memory, filled with ones: [16, 8] elements, for `add_rows`

namespace warp {

// D [16, 8] += A B over 32 bytes of each row: 16 products of 16-bit elements, summed in float, or 32 of int8 in int32.
template <typename T>
__device__ __forceinline__ void multiply(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    multiply_16x8x16<T>(d, a, b0, b1);
}

template <typename T>
__device__ __forceinline__ void multiply(int* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    multiply_16x8x32(d, a, b0, b1);
}

// D [64, N] = A [64, K] B^T, B [N, K]; A and B in shared memory.
template <typename T, int N, int K, typename Sum>
__device__ __forceinline__ void multiply_transposed(Sum (&d)[N / 2], Tile<T, 64, K> a, Tile<T, N, K> b) {
    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x % 128 / 32 * 16;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0;
#pragma unroll
    for (int k = 0; k < K * int(sizeof(T)) / 32; ++k) {
        unsigned left[4];
        load_matrices(left, a.at(warp_row + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            unsigned right[4];
            load_matrices(right, b.at(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            multiply<T>(d + 8 * n, left, right[0], right[1]);
            multiply<T>(d + 8 * n + 4, left, right[2], right[3]);
        }
    }
}

// D [64, N] += A [64, K] B [K, N], K = 4 * COUNT; A in registers (`pack`ed pairs of an accumulator [64, K]), B the rows
// from 16 * `step` of a tile.
template <typename T, int N, int ROWS, int COUNT>
__device__ __forceinline__ void multiply_add(float (&d)[N / 2], const unsigned (&a)[COUNT], Tile<T, ROWS, N> b,
                                             int step) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < COUNT / 4; ++k) {
        const unsigned left[4] = {a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]};
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            unsigned right[4];
            load_matrices_transposed(right, b.at(16 * (step + k) + lane % 16, 2 * n + lane / 16));
            multiply_16x8x16<T>(d + 8 * n, left, right[0], right[1]);
            multiply_16x8x16<T>(d + 8 * n + 4, left, right[2], right[3]);
        }
    }
}

// D [64, 8] += A [64, 4 * COUNT] times ones: the sums of A's rows, in every column.
template <typename T, int COUNT>
__device__ __forceinline__ void add_rows(float (&d)[4], const unsigned (&a)[COUNT], const unsigned char*) {
    const unsigned ones = pack<T>(1.f, 1.f);
#pragma unroll
    for (int k = 0; k < COUNT / 4; ++k) {
        const unsigned left[4] = {a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]};
        multiply_16x8x16<T>(d, left, ones, ones);
    }
}

// All products are complete when they return.
template <int PENDING, int COUNT>
__device__ __forceinline__ void wait(float (&)[COUNT]) {}

__device__ __forceinline__ void publish() {}

}  // namespace warp

namespace warpgroup {

// The 16 columns from 16 * k of a tile that is read along its rows (K-major).
template <typename T, int ROWS, int COLUMNS>
__device__ __forceinline__ Operand columns_of(Tile<T, ROWS, COLUMNS> tile, int k) {
    using Layout = Tile<T, ROWS, COLUMNS>;
    const int byte = 16 * k * int(sizeof(T));
    const int start = byte / Layout::WIDTH * Layout::BLOCK_BYTES + byte % Layout::WIDTH;
    return make_operand<Layout::WIDTH>(tile.base, start, 16, 8 * Layout::WIDTH);
}

// The 16 rows from 16 * k of a tile that is read along its columns (MN-major: "transposed").
template <typename T, int ROWS, int COLUMNS>
__device__ __forceinline__ Operand rows_of(Tile<T, ROWS, COLUMNS> tile, int k) {
    using Layout = Tile<T, ROWS, COLUMNS>;
    return make_operand<Layout::WIDTH>(tile.base, 16 * k * Layout::WIDTH, Layout::BLOCK_BYTES, 8 * Layout::WIDTH);
}

// These begin a product and leave it running: until `wait` says that it is done, `d` and `a` may not be touched, and the
// tiles not be overwritten. What the tiles hold must have been published to the matrix units.

// D [64, N] = A [64, K] B^T, B [N, K].
template <typename T, int N, int K>
__device__ __forceinline__ void multiply_transposed(float (&d)[N / 2], Tile<T, 64, K> a, Tile<T, N, K> b) {
    begin(d);
#pragma unroll
    for (int k = 0; k < K / 16; ++k) Multiply<T, N>::shared(d, columns_of(a, k), columns_of(b, k), k > 0);
    commit();
}

// D [64, N] += A [64, K] B [K, N], as warp::multiply_add.
template <typename T, int N, int ROWS, int COUNT>
__device__ __forceinline__ void multiply_add(float (&d)[N / 2], const unsigned (&a)[COUNT], Tile<T, ROWS, N> b,
                                             int step) {
    begin(d);
#pragma unroll
    for (int k = 0; k < COUNT / 4; ++k)
        Multiply<T, N>::registers(d, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], rows_of(b, step + k));
    commit();
}

// As warp::add_rows, with ONES_BYTES of ones in shared memory.
template <typename T, int COUNT>
__device__ __forceinline__ void add_rows(float (&d)[4], const unsigned (&a)[COUNT], const unsigned char* ones) {
    begin(d);
#pragma unroll
    for (int k = 0; k < COUNT / 4; ++k)
        Multiply<T, 8>::registers(d, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3],
                                  make_operand<16>(ones, 0, ONES_BYTES / 2, ONES_BYTES / 2));
    commit();
}

}  // namespace warpgroup
}  // namespace tiles
