// Planted faults. The line that a finding must name carries a comment `<- kernel`.

extern "C" __global__ void read_beyond(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i + 1];  // <- read_beyond
}

extern "C" __global__ void write_before(float* y) {
    y[(int)threadIdx.x - 1] = 1.0f;  // <- write_before
}

extern "C" __global__ void shared_beyond(float* y) {
    __shared__ float tile[32];
    __shared__ float other[32];
    tile[threadIdx.x + 1] = 1.0f;  // <- shared_beyond
    other[threadIdx.x] = 2.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x ? threadIdx.x : 1] + other[threadIdx.x];
}

extern "C" __global__ void dynamic_beyond(float* y) {
    extern __shared__ float buffer[];
    buffer[threadIdx.x] = 1.0f;  // <- dynamic_beyond
    y[threadIdx.x] = buffer[threadIdx.x];
}

extern "C" __global__ void misaligned(const float* x, float* y) {
    float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + 1);  // <- misaligned
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

extern "C" __global__ void null_pointer(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];  // <- null_pointer
}

extern "C" __global__ void race(float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = (float)threadIdx.x;
    y[threadIdx.x] = tile[63 - threadIdx.x];  // <- race
}

extern "C" __global__ void race_in_warp(float* y) {
    __shared__ float tile[32];
    tile[threadIdx.x] = (float)threadIdx.x;
    float v = __shfl_sync(0xffffffffu, 1.0f, 0);  // orders no memory
    y[threadIdx.x] = tile[31 - threadIdx.x] + v;  // <- race_in_warp
}

extern "C" __global__ void lost_update(int* y) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    count += 1;  // <- lost_update
    __syncthreads();
    if (threadIdx.x == 0) *y = count;
}

extern "C" __global__ void missing_second_barrier(const float* x, float* y) {
    __shared__ float tile[64];
    float sum = 0.0f;
    for (int step = 0; step < 2; ++step) {
        tile[threadIdx.x] = x[step * 64 + threadIdx.x];  // <- missing_second_barrier
        __syncthreads();
        sum += tile[63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void uninitialised(float* y) {
    __shared__ float tile[64];
    if (threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];  // <- uninitialised
}

extern "C" __global__ void accumulates(const float* x, float* y) {
    y[threadIdx.x] += x[threadIdx.x];  // <- accumulates
}

extern "C" __global__ void exited(float* y) {
    if (threadIdx.x >= 40) return;
    __syncthreads();  // <- exited
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void two_barriers(float* y) {
    if (threadIdx.x < 32) {
        y[threadIdx.x] = 1.0f;
        __syncthreads();
    } else {
        y[threadIdx.x] = 2.0f;
        __syncthreads();  // <- two_barriers
    }
}

extern "C" __global__ void half_a_warp(float* y) {
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);  // <- half_a_warp
    __syncthreads();
    y[threadIdx.x] = v;
}

extern "C" __global__ void not_in_mask(float* y) {
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);  // <- not_in_mask
}

extern "C" __global__ void reads_absent_lane(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, (int)threadIdx.x + 16);  // <- reads_absent_lane
}

extern "C" __global__ void endless(volatile int* flag) {
    while (*flag == 0) {  // <- endless
    }
}

extern "C" __global__ void waits_for_nobody(int* flag) {
    while (atomicAdd(flag, 0) == 0) __nanosleep(100);  // <- waits_for_nobody
}

extern "C" __global__ void traps(int* y) {
    y[0] = 7;
    if (threadIdx.x == 3) __trap();  // <- traps
}

extern "C" __global__ void asserts(const int* x) {
    assert(x[threadIdx.x] < 9);  // <- asserts
}

__device__ int descend(volatile int* y, int depth) {
    volatile char space[1024];
    space[depth % 1024] = (char)depth;  // <- too_deep
    return *y == 12345 ? space[depth % 7] : descend(y, depth + 1) + space[depth % 5];
}
extern "C" __global__ void too_deep(int* y) { *y = descend(y, 0); }

extern "C" __global__ void greedy(int* y) {
    while (void* got = malloc(1 << 28)) memset(got, 1, 16);
    y[0] = 1;
}

extern "C" __global__ void blocks_race(float* y) {
    if (threadIdx.x == 0) y[blockIdx.x / 2] = (float)blockIdx.x;  // <- blocks_race
}
