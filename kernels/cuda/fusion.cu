// D = A[10:165, 20:220] * B; C = C / C.max(); E = D * C, for A [200, 250] and B, C [155, 200], all float32 row-major.
//
// The maximum is found by one block (or by each block for itself), so that no memory has to be cleared before; a NaN in
// C does not spread as NumPy's would.
#include "common.cuh"

using namespace probe;

struct Slice {
    int row, column, width;  // where it begins, and the width of the whole matrix

    __device__ __forceinline__ float of(const float* a, int index, int columns) const {
        return a[(row + index / columns) * width + column + index % columns];
    }
};

__device__ __forceinline__ float maximum_of(const float* c, int count) {
    __shared__ float partial[WARP];
    float most = -__int_as_float(0x7f800000);
    for (int i = threadIdx.x; i < count; i += blockDim.x) { most = fmaxf(most, c[i]); }
    return block_reduce(most, partial, Max{});
}

__device__ __forceinline__ int own_index() { return blockIdx.x * blockDim.x + threadIdx.x; }

extern "C" __global__ void slice(const float* a, float* out, int row, int column, int width, int columns, int count) {
    const int i = own_index();
    if (i < count) { out[i] = Slice{row, column, width}.of(a, i, columns); }
}

extern "C" __global__ void multiply(const float* x, const float* y, float* out, int count) {
    const int i = own_index();
    if (i < count) { out[i] = x[i] * y[i]; }
}

// One block.
extern "C" __global__ void maximum(const float* c, float* most, int count) {
    const float found = maximum_of(c, count);
    if (threadIdx.x == 0) { *most = found; }
}

extern "C" __global__ void divide(const float* c, const float* most, float* out, int count) {
    const int i = own_index();
    if (i < count) { out[i] = c[i] / *most; }
}

extern "C" __global__ void slice_multiply(
    const float* a, const float* b, float* d, int row, int column, int width, int columns, int count) {
    const int i = own_index();
    if (i < count) { d[i] = Slice{row, column, width}.of(a, i, columns) * b[i]; }
}

extern "C" __global__ void divide_multiply(const float* d, const float* c, const float* most, float* e, int count) {
    const int i = own_index();
    if (i < count) { e[i] = d[i] * (c[i] / *most); }
}

// Everything: each block finds the maximum again, from the L2 cache, rather than waiting for another.
extern "C" __global__ void all_in_one(
    const float* a, const float* b, const float* c, float* e, int row, int column, int width, int columns, int count) {
    const float most = maximum_of(c, count);
    const int i = own_index();
    if (i < count) { e[i] = Slice{row, column, width}.of(a, i, columns) * b[i] * (c[i] / most); }
}
