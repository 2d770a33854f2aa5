// What the instructions behind tiles.cuh do, written out for the CPU; the twin of tiles_ptx.cuh.
//
// Matrix operands are read through the same offsets and swizzles as the hardware reads them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace tiles {

__device__ inline void copy_async(void* target, const void* source, bool valid = true) {
    probe_emulation::copy_later(target, source, 16, valid ? 16 : 0);
}

__device__ inline void commit_copies() { probe_emulation::commit_copies(); }

template <int PENDING>
__device__ inline void wait_copies() {
    probe_emulation::wait_for_copies(PENDING);
}

__device__ inline float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.f : y;
}

template <typename T>
inline float widen(unsigned bits);

template <>
inline float widen<Half>(unsigned bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

template <>
inline float widen<BFloat16>(unsigned bits) {
    return __uint_as_float(bits << 16);
}

// Element `index` of a fragment's register: 16-bit elements, the first in the low half.
template <typename T>
inline float element(unsigned packed, int index) {
    return widen<T>(packed >> 16 * index & 0xffff);
}

__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
    const auto rows = probe_emulation::warp_exchange(row);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) r[i] = static_cast<const unsigned*>(rows[8 * i + lane / 4])[lane % 4];
}

__device__ inline void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    const auto rows = probe_emulation::warp_exchange(row);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        const int first = 8 * i + lane % 4 * 2;
        const unsigned low = static_cast<const unsigned short*>(rows[first])[lane / 4];
        const unsigned high = static_cast<const unsigned short*>(rows[first + 1])[lane / 4];
        r[i] = low | high << 16;
    }
}

struct Fragments {
    unsigned a[4];
    unsigned b[2];
};

template <typename T>
__device__ inline void multiply_16x8x16(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const auto all = probe_emulation::warp_exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const unsigned left = all[row * 4 + k % 8 / 2].a[i / 2 + k / 8 * 2];
            const unsigned right = all[column * 4 + k % 8 / 2].b[k / 8];
            d[i] += element<T>(left, k % 2) * element<T>(right, k % 2);
        }
    }
}

__device__ inline void multiply_16x8x32(int* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const auto all = probe_emulation::warp_exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int lane = threadIdx.x % 32;
    const auto byte = [](unsigned packed, int k) { return int(int8_t(packed >> k % 4 * 8)); };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; ++k) {
            const unsigned left = all[row * 4 + k % 16 / 4].a[i / 2 + k / 16 * 2];
            const unsigned right = all[column * 4 + k % 16 / 4].b[k / 16];
            d[i] += byte(left, k) * byte(right, k);
        }
    }
}

namespace warpgroup {

__device__ inline void publish() {}

struct Operand {
    const unsigned char* tile;
    int start, leading, stride, width;

    // The 16-bit element at a byte offset before the swizzle.
    unsigned bits(int linear) const {
        linear ^= (linear >> 7 & (width / 16 - 1)) << 4;
        return *reinterpret_cast<const unsigned short*>(tile + linear);
    }
    unsigned along_rows(int row, int k) const { return bits(start + row % 8 * width + row / 8 * stride + 2 * k); }
    unsigned along_columns(int column, int k) const {
        return bits(start + 2 * column / width * leading + 2 * column % width + k % 8 * width + k / 8 * stride);
    }
};

template <int WIDTH>
__device__ inline Operand make_operand(const unsigned char* tile, int start, int leading, int stride) {
    if (reinterpret_cast<uintptr_t>(tile) % (WIDTH > 16 ? 1024 : 16) != 0) {
        std::fprintf(stderr, "a swizzled tile must start at a multiple of 1024 bytes\n");
        std::abort();
    }
    return {tile, start, leading, stride, WIDTH};
}

template <int COUNT>
__device__ inline void begin(float (&)[COUNT]) {}

__device__ inline void commit() {}

template <int PENDING, int COUNT>
__device__ inline void wait(float (&)[COUNT]) {}

template <typename T, int N>
struct Multiply {
    static __device__ void shared(float (&d)[N / 2], Operand a, Operand b, bool add) {
        const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
        float left[2][16];
        for (int k = 0; k < 16; ++k)
            for (int r = 0; r < 2; ++r) left[r][k] = widen<T>(a.along_rows(row + 8 * r, k));
        multiply(d, left, add, [&](int column, int k) { return b.along_rows(column, k); });
    }

    static __device__ void registers(float (&d)[N / 2], unsigned a0, unsigned a1, unsigned a2, unsigned a3, Operand b) {
        const auto all = probe_emulation::warp_exchange(Fragments{{a0, a1, a2, a3}, {}});
        float left[2][16];
        for (int k = 0; k < 16; ++k)
            for (int r = 0; r < 2; ++r)
                left[r][k] = element<T>(all[threadIdx.x % 32 / 4 * 4 + k % 8 / 2].a[r + k / 8 * 2], k % 2);
        multiply(d, left, true, [&](int column, int k) { return b.along_columns(column, k); });
    }

private:
    template <typename Right>
    static void multiply(float (&d)[N / 2], const float (&left)[2][16], bool add, Right right) {
        for (int i = 0; i < N / 2; i += 4)
            for (int c = 0; c < 2; ++c) {
                float sum[2] = {add ? d[i + c] : 0.f, add ? d[i + 2 + c] : 0.f};
                for (int k = 0; k < 16; ++k) {
                    const float b = widen<T>(right(2 * i + threadIdx.x % 4 * 2 + c, k));
                    sum[0] += left[0][k] * b;
                    sum[1] += left[1][k] * b;
                }
                d[i + c] = sum[0];
                d[i + 2 + c] = sum[1];
            }
    }
};

}  // namespace warpgroup
}  // namespace tiles
