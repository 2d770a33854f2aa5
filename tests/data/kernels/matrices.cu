// Matrix units and copies in the background, by wmma and by inline PTX; the types of 8 bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <mma.h>

#include <cstdint>

using namespace nvcuda;

// D = 2 A B + C for one tile; A [M, K], B [N, K], C and D [M, N].
template <int M, int N, int K, class T, class Sum, class Stored>
__global__ void tile(const Stored* a, const Stored* b, const Sum* c, Sum* d) {
    wmma::fragment<wmma::matrix_a, M, N, K, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, T, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, M, N, K, Sum> fc, fd;
    wmma::fill_fragment(fd, Sum(0));
    wmma::load_matrix_sync(fa, a, K);
    wmma::load_matrix_sync(fb, b, K);
    wmma::load_matrix_sync(fc, c, N, wmma::mem_row_major);
    wmma::mma_sync(fd, fa, fb, fd);
    for (int i = 0; i < fd.num_elements; ++i) fd.x[i] = Sum(2) * fd.x[i] + fc.x[i];
    wmma::store_matrix_sync(d, fd, N, wmma::mem_row_major);
}

// A leading dimension that the unit cannot have, and an address that it cannot load from.
extern "C" __global__ void slanted(const half* a, float* d) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> fa;
    wmma::load_matrix_sync(fa, a, 17);  // <- leading
    wmma::load_matrix_sync(fa, a + 8, 16);  // <- misaligned
    d[threadIdx.x] = (float)fa.x[0];
}

__device__ __forceinline__ void copy16(uint32_t to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}

// C [16, 8] = A [16, k] B [k, 8], in steps of 16.
extern "C" __global__ void by_ptx(const half* a, const half* b, float* c, int k) {
    __shared__ __align__(16) half sa[16][24], sb[16][8];
    const uint32_t pa = (uint32_t)__cvta_generic_to_shared(&sa[0][0]), pb = (uint32_t)__cvta_generic_to_shared(sb);
    const int lane = threadIdx.x;
    float d[4] = {};
    for (int at = 0; at < k; at += 16) {
        copy16(pa + (lane / 2 * 24 + lane % 2 * 8) * 2, a + lane / 2 * k + at + lane % 2 * 8, true);
        if (lane < 16) copy16(pb + lane * 16, b + (at + lane) * 8, at + lane < k);
        asm volatile("cp.async.commit_group;\ncp.async.wait_group %0;" ::"n"(0));
        __syncthreads();
        uint32_t ra[4], rb[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
                     : "r"(pa + (lane % 16 * 24 + lane / 16 * 8) * 2));
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(rb[0]), "=r"(rb[1]) : "r"(pb + lane % 16 * 16));
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
        __syncthreads();
    }
    float* row = c + lane / 4 * 8 + lane % 4 * 2;
    row[0] = d[0], row[1] = d[1], row[64] = d[2], row[65] = d[3];
}

// Bytes: C [16, 8] = A [16, 32] B [8, 32].
extern "C" __global__ void by_ptx_int8(const uint32_t* a, const uint32_t* b, int* c) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    int d[4] = {};
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[g * 8 + t]), "r"(a[(g + 8) * 8 + t]), "r"(a[g * 8 + t + 4]), "r"(a[(g + 8) * 8 + t + 4]), "r"(b[g * 8 + t]),
          "r"(b[g * 8 + t + 4]));
    c[g * 8 + 2 * t] = d[0], c[g * 8 + 2 * t + 1] = d[1], c[(g + 8) * 8 + 2 * t] = d[2], c[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// Instructions one by one, a column each.
extern "C" __global__ void instructions(const float* x, const int* n, float* y, int* z) {
    const int lane = threadIdx.x;
    float f[4], *row = y + 8 * lane;
    int* ints = z + 8 * lane;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(row[0]) : "f"(x[lane]));
    asm("fma.rn.f32 %0, %1, %1, %2;" : "=f"(row[1]) : "f"(x[lane]), "f"(1.0f));
    asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4 + 16];" : "=f"(f[0]), "=f"(f[1]), "=f"(f[2]), "=f"(f[3]) : "l"(x));
    row[2] = f[3];
    row[3] = -1.0f;
    asm volatile("{\n .reg .pred p;\n setp.lt.s32 p, %2, 4;\n @p ld.global.f32 %0, [%1];\n}\n" : "+f"(row[3]) : "l"(x + lane), "r"(lane));
    asm("mov.u32 %0, %%laneid;" : "=r"(ints[0]));
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(ints[1]) : "r"(n[lane]), "r"(12), "r"(33));
    asm("shfl.sync.bfly.b32 %0, %1, 1, 0x1f, 0xffffffff;" : "=r"(ints[2]) : "r"(n[lane]));
    asm("bfe.s32 %0, %1, 3, 5;" : "=r"(ints[3]) : "r"(n[lane]));
    asm("{ .reg .b32 t; add.s32 t, %1, %2; mul.lo.s32 %0, t, t; }" : "=r"(ints[4]) : "r"(n[lane]), "n"(3));
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(ints[5]) : "f"(10.0f * x[lane]));
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(ints[6]) : "f"(x[lane]), "f"(1.0f));
    asm volatile("red.global.add.s32 [%0], %1;" ::"l"(z + 7), "r"(1) : "memory");
    asm volatile("bar.sync 0;" ::: "memory");
}

extern "C" __global__ void bytes(const float* x, __nv_fp8_e4m3* small, __nv_fp8_storage_t* wide, float* back) {
    const int i = threadIdx.x;
    small[i] = __nv_fp8_e4m3(x[i]);
    wide[i] = __nv_cvt_float_to_fp8(x[i], __NV_NOSAT, __NV_E5M2);
    back[i] = float(small[i]);
    back[32 + i] = __half2float(half(__nv_cvt_fp8_to_halfraw(wide[i], __NV_E5M2)));
}

// Nothing here is emulated; what does not reach it runs.
extern "C" __global__ void copies_in_bulk(int* y, int how) {
    __shared__ uint64_t barrier;
    if (how) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(&barrier)), "r"(1));  // <- mbarrier
    y[threadIdx.x] = 5;
}
