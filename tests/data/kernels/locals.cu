// Planted faults in local memory and in variables outside of functions; lines are marked as in faults.cu.

__device__ float table[16];

extern "C" __global__ void local_beyond(const int* index, float* y) {
    float values[8];
    for (int i = 0; i < 8; ++i) values[i] = (float)i;
    values[index[threadIdx.x]] = 1.0f;  // <- local_beyond
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x % 8];
}

extern "C" __global__ void through_pointer(const int* index, float* y) {
    float values[8], others[3] = {1.0f, 2.0f, 3.0f};
    for (int i = 0; i < 8; ++i) values[i] = (float)i;
    const float* p = values + index[threadIdx.x];
    y[threadIdx.x] = *p + others[threadIdx.x % 3];  // <- through_pointer
}

extern "C" __global__ void another_threads(float* y) {
    __shared__ float* lent;
    float own[2] = {(float)threadIdx.x, 1.0f};
    if (threadIdx.x == 3) lent = own;
    __syncthreads();
    if (threadIdx.x == 7) own[1] = lent[0];  // <- another_threads
    y[threadIdx.x] = own[1];
}

extern "C" __global__ void inner_row(const int* index, float* y) {
    float square[4][4] = {};
    square[0][index[threadIdx.x]] = 1.0f;  // <- inner_row
    y[threadIdx.x] = square[1][0];
}

extern "C" __global__ void scope_ended(float* y) {
    const float* p;
    {
        float inner[4] = {1.0f, 2.0f, 3.0f, (float)threadIdx.x};
        p = inner;
        y[threadIdx.x] = p[threadIdx.x % 4];
    }
    y[threadIdx.x] += p[1];  // <- scope_ended
}

extern "C" __global__ void variable_beyond(const int* index, float* y) {
    const float* p = table + index[threadIdx.x];
    y[threadIdx.x] = *p;  // <- variable_beyond
}

extern "C" __global__ void shift_too_far(const int* index, int* y) {
    y[threadIdx.x] = 1 << index[threadIdx.x];  // <- shift_too_far
}

// Nothing is wrong here: frames of many sizes, barriers and shuffles while they are open, blocks one after another.
__device__ float deeper(const float* x, int depth) {
    float window[5];
    for (int i = 0; i < 5; ++i) window[i] = x[i] + (float)depth;
    __syncwarp();
    const float sum = window[depth % 5] + __shfl_xor_sync(0xffffffffu, window[2], 1);
    return depth == 0 ? sum : sum + deeper(window, depth - 1);
}

extern "C" __global__ void nothing_wrong(float* y) {
    float x[5];
    __shared__ float tile[64];
    for (int i = 0; i < 5; ++i) x[i] = (float)(threadIdx.x + i);
    tile[threadIdx.x] = deeper(x, 3);
    __syncthreads();
    atomicAdd(y + threadIdx.x, tile[blockDim.x - 1 - threadIdx.x] + table[threadIdx.x % 16]);
}
