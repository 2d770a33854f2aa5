// The instructions behind tiles.cuh; tiles_emulation.cuh is the twin of this file.
#pragma once

namespace tiles {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory in the background.
__device__ __forceinline__ void copy_async(void* target, const void* source) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(target)), "l"(source)
                 : "memory");
}

// Or writes zeros where `source` is not `valid`: it is not read.
__device__ __forceinline__ void copy_async(void* target, const void* source, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's committed groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// 2^x, subnormal results flushed to zero.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// D [16, 8] += A [16, 16] B [16, 8] by one warp.
template <typename T>
__device__ __forceinline__ void multiply_16x8x16(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1);

#define PROBE_MMA(T, NAME)                                                                                           \
    template <>                                                                                                      \
    __device__ __forceinline__ void multiply_16x8x16<T>(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1) { \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                          \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                          \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                \
    }
PROBE_MMA(Half, "f16")
PROBE_MMA(BFloat16, "bf16")
#undef PROBE_MMA

// D [16, 8] += A [16, 32] B [32, 8] of int8, summed in int32, by one warp.
__device__ __forceinline__ void multiply_16x8x32(int* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

namespace warpgroup {

// What this thread wrote to shared memory becomes visible to wgmma, after a barrier.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// An operand in shared memory: start, leading and stride byte offsets over 16, and the swizzle.
struct Operand {
    unsigned long long descriptor;
};

template <int WIDTH>
__device__ __forceinline__ Operand make_operand(const unsigned char* tile, int start, int leading, int stride) {
    constexpr unsigned SWIZZLE = WIDTH == 128 ? 1 : WIDTH == 64 ? 2 : WIDTH == 32 ? 3 : 0;
    const unsigned low = (shared_address(tile) >> 4) + (start >> 4) + (leading >> 4 << 16);  // addresses are below 2^18
    const unsigned high = stride >> 4 | SWIZZLE << 30;
    return {(unsigned long long)high << 32 | low};
}

// The compiler may not move what it knows of `d` across this.
template <int COUNT>
__device__ __forceinline__ void keep(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int COUNT>
__device__ __forceinline__ void begin(float (&d)[COUNT]) {
    keep(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING products are still running; `d` is of those that are done.
template <int PENDING, int COUNT>
__device__ __forceinline__ void wait(float (&d)[COUNT]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    keep(d);
}

// D [64, N] += A [64, 16] B: A and B [N, 16] in shared memory, or A in registers and B [16, N] in shared memory.
template <typename T, int N>
struct Multiply;

#define PROBE_R4 "%0, %1, %2, %3"
#define PROBE_R16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PROBE_R32 \
    PROBE_R16     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PROBE_R48 \
    PROBE_R32     \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PROBE_R64 \
    PROBE_R48     \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PROBE_F8(i)                                                                                             \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define PROBE_F4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define PROBE_F16 PROBE_F8(0), PROBE_F8(8)
#define PROBE_F32 PROBE_F16, PROBE_F8(16), PROBE_F8(24)
#define PROBE_F48 PROBE_F32, PROBE_F8(32), PROBE_F8(40)
#define PROBE_F64 PROBE_F48, PROBE_F8(48), PROBE_F8(56)

// C is N / 2, the number of accumulators; I0 .. I5 the numbers of the operands after them.
#define PROBE_WGMMA(T, NAME, N, C, I0, I1, I2, I3, I4, I5)                                                          \
    template <>                                                                                                     \
    struct Multiply<T, N> {                                                                                         \
        static __device__ __forceinline__ void shared(float (&d)[C], Operand a, Operand b, bool add) {              \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" I2 ", 0;\n"                                           \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" PROBE_R##C            \
                         "}, %" I0 ", %" I1 ", p, 1, 1, 0, 0;\n}"                                                   \
                         : PROBE_F##C                                                                               \
                         : "l"(a.descriptor), "l"(b.descriptor), "r"(int(add)));                                    \
        }                                                                                                           \
        static __device__ __forceinline__ void registers(float (&d)[C], unsigned a0, unsigned a1, unsigned a2,      \
                                                         unsigned a3, Operand b) {                                  \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" I5 ", 0;\n"                                           \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" PROBE_R##C            \
                         "}, {%" I0 ", %" I1 ", %" I2 ", %" I3 "}, %" I4 ", p, 1, 1, 1;\n}"                         \
                         : PROBE_F##C                                                                               \
                         : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b.descriptor), "r"(1));                          \
        }                                                                                                           \
    };
#define PROBE_WGMMA_SIZES(T, NAME)                                          \
    PROBE_WGMMA(T, NAME, 8, 4, "4", "5", "6", "7", "8", "9")                \
    PROBE_WGMMA(T, NAME, 32, 16, "16", "17", "18", "19", "20", "21")        \
    PROBE_WGMMA(T, NAME, 64, 32, "32", "33", "34", "35", "36", "37")        \
    PROBE_WGMMA(T, NAME, 96, 48, "48", "49", "50", "51", "52", "53")        \
    PROBE_WGMMA(T, NAME, 128, 64, "64", "65", "66", "67", "68", "69")
PROBE_WGMMA_SIZES(Half, "f16")
PROBE_WGMMA_SIZES(BFloat16, "bf16")
#undef PROBE_WGMMA_SIZES
#undef PROBE_WGMMA

}  // namespace warpgroup
}  // namespace tiles
