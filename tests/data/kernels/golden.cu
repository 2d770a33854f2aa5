// One kernel for each thing that the emulation has: results are compared with NumPy's.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace cg = cooperative_groups;

extern "C" __global__ void indices(int* out) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int* o = out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    o[0] = blockIdx.x, o[1] = blockIdx.y, o[2] = blockIdx.z;
    o[3] = threadIdx.x, o[4] = threadIdx.y, o[5] = threadIdx.z;
}

// A tiled product: static shared memory, barriers in a loop.
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int m, int n, int k) {
    constexpr int T = 16;
    __shared__ float ta[T][T], tb[T][T];
    int row = blockIdx.y * T + threadIdx.y, column = blockIdx.x * T + threadIdx.x;
    float sum = 0.0f;
    for (int at = 0; at < k; at += T) {
        ta[threadIdx.y][threadIdx.x] = row < m && at + threadIdx.x < k ? a[row * k + at + threadIdx.x] : 0.0f;
        tb[threadIdx.y][threadIdx.x] = column < n && at + threadIdx.y < k ? b[(at + threadIdx.y) * n + column] : 0.0f;
        __syncthreads();
        for (int i = 0; i < T; ++i) sum = fmaf(ta[threadIdx.y][i], tb[i][threadIdx.x], sum);
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}

// All four shuffles over every width and argument; 32 lanes.
extern "C" __global__ void shuffles(const int* x, int* out, int argument, int width) {
    int v = x[threadIdx.x];
    out[threadIdx.x] = __shfl_sync(0xffffffffu, v, argument, width);
    out[32 + threadIdx.x] = __shfl_up_sync(0xffffffffu, v, (unsigned)argument, width);
    out[64 + threadIdx.x] = __shfl_down_sync(0xffffffffu, v, (unsigned)argument, width);
    out[96 + threadIdx.x] = __shfl_xor_sync(0xffffffffu, v, argument, width);
}

extern "C" __global__ void votes(const int* x, unsigned* out) {
    int v = x[threadIdx.x], all_same;
    unsigned full = 0xffffffffu;
    unsigned* o = out + 12 * threadIdx.x;
    o[0] = __ballot_sync(full, v > 2);
    o[1] = __any_sync(full, v == 3);
    o[2] = __all_sync(full, v < 4);
    o[3] = __match_any_sync(full, v);
    o[4] = __match_all_sync(full, v, &all_same);
    o[5] = (unsigned)all_same;
    o[6] = (unsigned)__reduce_add_sync(full, v);
    o[7] = (unsigned)__reduce_max_sync(full, v);
    o[8] = __reduce_xor_sync(full, (unsigned)v);
    o[9] = v > 2 ? __activemask() : 0u;
    o[10] = (unsigned)__syncthreads_count(v > 2);
    o[11] = (unsigned)(__syncthreads_and(v < 4) * 2 + __syncthreads_or(v == 3));
}

extern "C" __global__ void atomics(const int* x, int* ints, unsigned* words, float* reals, unsigned long long* wide, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i];
    atomicAdd(&ints[0], v), atomicMax(&ints[1], v), atomicMin(&ints[2], v), atomicSub(&ints[3], v);
    atomicOr(&words[0], 1u << (v & 31)), atomicAnd(&words[1], ~(1u << (v & 31))), atomicXor(&words[2], (unsigned)v);
    atomicInc(&words[3], 9u), atomicDec(&words[4], 9u);
    atomicAdd(&reals[0], 0.5f * (float)v);
    atomicAdd(&wide[0], (unsigned long long)v << 20);
    unsigned long long seen = wide[1], expected;
    do expected = seen, seen = atomicCAS(&wide[1], expected, expected + 3);
    while (seen != expected);
}

// A lock in global memory, a last block that finishes: both need threads to make way for each other.
extern "C" __global__ void locked(int* lock, int* sum, int* order) {
    if (threadIdx.x % 32 == 0) {
        while (atomicCAS(lock, 0, 1) != 0) __nanosleep(20);
        int position = *sum;
        *sum = position + 1;
        __threadfence();
        order[position] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
        atomicExch(lock, 0);
    }
}

extern "C" __global__ void halves(const half* a, const half* b, const half* c, half* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = a[i] + b[i], out[n + i] = a[i] * b[i], out[2 * n + i] = a[i] / b[i], out[3 * n + i] = __hfma(a[i], b[i], c[i]);
    half2 p = __halves2half2(a[i], b[i]), q = __hadd2(p, __half2half2(c[i]));
    out[4 * n + i] = __low2half(q), out[5 * n + i] = __high2half(q);
    out[6 * n + i] = hsqrt(__habs(a[i])), out[7 * n + i] = __hmax(a[i], b[i]);
}

extern "C" __global__ void from_floats(const float* x, half* h, half* down, __nv_bfloat16* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) h[i] = __float2half_rn(x[i]), down[i] = __float2half_rz(x[i]), b[i] = __float2bfloat16(x[i]);
}

extern "C" __global__ void to_floats(const half* h, const __nv_bfloat16* b, float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = __half2float(h[i]), y[i] = __bfloat162float(b[i]);
}

extern "C" __global__ void bits(const int* x, const int* y, int* out, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    int* o = out + 10 * i;
    o[0] = __popc((unsigned)x[i]), o[1] = __clz(x[i]), o[2] = __ffs(x[i]), o[3] = (int)__brev((unsigned)x[i]);
    o[4] = (int)__byte_perm((unsigned)x[i], (unsigned)y[i], 0x5140), o[5] = __dp4a(x[i], y[i], 7);
    o[6] = __mulhi(x[i], y[i]), o[7] = (int)__funnelshift_l((unsigned)x[i], (unsigned)y[i], 5);
    o[8] = __float2int_rn((float)x[i] * 1e-4f), o[9] = max(x[i], y[i]);
}

extern "C" __global__ void groups(const float* x, float* out) {
    cg::thread_block block = cg::this_thread_block();
    auto tile = cg::tiled_partition<8>(block);
    float sum = cg::reduce(tile, x[block.thread_rank()], cg::plus<float>());
    block.sync();
    out[block.thread_rank()] = sum;
    if (threadIdx.x % 3 == 0) {
        auto together = cg::coalesced_threads();
        out[64 + block.thread_rank()] = (float)together.size() + 100.0f * (float)together.thread_rank();
    }
}

extern "C" __global__ void exchanges(const int* x, int* out) {
    struct Fragment {
        int value[4];
    } mine = {{x[threadIdx.x], x[threadIdx.x] * 2, 0, (int)threadIdx.x}};
    auto warp = probe_emulation::warp_exchange(mine);
    auto group = probe_emulation::warpgroup_exchange(mine);
    out[threadIdx.x] = warp[31 - threadIdx.x % 32].value[1];
    out[blockDim.x + threadIdx.x] = group[127 - threadIdx.x % 128].value[3];
}

// Producer and consumer warps meet at a barrier of their own.
extern "C" __global__ void named_barriers(const int* x, int* out) {
    __shared__ int tile[32];
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = x[threadIdx.x];
        probe_emulation::barrier_arrive(1, 64);
    } else if (threadIdx.x < 64) {
        probe_emulation::barrier(1, 64);
        out[threadIdx.x - 32] = tile[63 - threadIdx.x];
    }
}

__constant__ float table[4] = {1.0f, 2.0f, 4.0f, 8.0f};
__device__ int launches = 0;

extern "C" __global__ void globals(const float* x, float* y, int* count) {
    y[threadIdx.x] = x[threadIdx.x] * table[threadIdx.x % 4];
    if (threadIdx.x == 0) *count = ++launches;
}

extern "C" __global__ void says(const char* unused, float f) {
    if (threadIdx.x == 0) printf("block %d of %u: %5.2f \"%s\"\n", (int)blockIdx.x, gridDim.x, (double)f, "é");
}

struct Shape {
    int rows, columns;
    float scale;
};
extern "C" __global__ void takes_structure(Shape shape, float* y) { y[0] = (float)(shape.rows * shape.columns) * shape.scale; }
