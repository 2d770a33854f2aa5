// layernorm(word + token type + position) for tokens by id, and the masks that attention reads.
//
// Fixed length: ids are [S, B], a row is s * B + b. Variable length: ids are [T], cu_seqlens [B + 1] says where each
// sequence starts. An id without a row in its table makes the row NaN. Parameters are float32.
#include "layernorm.cuh"

namespace probe {

struct Tables {
    int words, types, positions;  // rows of each
};

// Place of a token in its own sequence: of those that start at or before it, the last one counts.
__device__ __forceinline__ int position_of(int token, int batch, const int* cu_seqlens) {
    if (cu_seqlens == nullptr) { return token / batch; }
    int low = 0, high = batch;  // cu_seqlens[low] <= token < cu_seqlens[high]
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (cu_seqlens[middle] <= token ? low : high) = middle;
    }
    return token - cu_seqlens[low];
}

__device__ __forceinline__ bool has_row(int id, int rows) { return id >= 0 && id < rows; }

template <typename T, int WIDTH>
struct EmbeddingRow {
    struct Raw {
        Vector<T, WIDTH> word, type, position;
    };
    const T *word, *type, *position;  // rows of the tables
    T* residual;
    bool known;

    __device__ __forceinline__ Raw fetch(int column) const {
        return {load<WIDTH>(word + column), load<WIDTH>(type + column), load<WIDTH>(position + column)};
    }

    __device__ __forceinline__ void widen(const Raw& raw, int column, float (&values)[WIDTH]) const {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float sum = to_float(raw.word.at[i]) + to_float(raw.type.at[i]) + to_float(raw.position.at[i]);
            values[i] = known ? sum : __int_as_float(0x7fc00000);
        }
        if (residual != nullptr) { write_vector(residual + column, values); }
    }
};

template <int WIDTH, typename T>
__device__ __forceinline__ void embed_row(const EmbeddingRow<T, WIDTH>& row, T* output, const Norm& norm) {
    normalise<WIDTH>(
        norm, row, [=](int column, const float(&values)[WIDTH]) { write_vector(output + column, values); });
}

template <typename T>
__device__ __forceinline__ void embed(
    const int* ids, const int* types, const int* cu_seqlens, const T* word_table, const T* type_table,
    const T* position_table, T* output, T* residual, int rows, int batch, const Tables& tables, const Norm& norm) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) { return; }
    int id = ids[row], type = types[row], position = position_of(row, batch, cu_seqlens);
    const bool known = has_row(id, tables.words) && has_row(type, tables.types) && has_row(position, tables.positions);
    if (!known) { id = type = position = 0; }
    const long long hidden = norm.hidden, start = row * hidden;
    T* kept = residual == nullptr ? nullptr : residual + start;
    const T *a = word_table + id * hidden, *b = type_table + type * hidden, *c = position_table + position * hidden;
    if (norm.hidden % VECTOR_WIDTH<T> == 0) {
        embed_row(EmbeddingRow<T, VECTOR_WIDTH<T>>{a, b, c, kept, known}, output + start, norm);
    } else {
        embed_row(EmbeddingRow<T, 1>{a, b, c, kept, known}, output + start, norm);
    }
}

}  // namespace probe

using namespace probe;

// cu_seqlens may be null (fixed length); `residual`, if not null, gets the sum before the normalisation (Megatron).
extern "C" __global__ void __launch_bounds__(512) embedding_layernorm_f32(
    const int* ids, const int* types, const int* cu_seqlens, const float* word_table, const float* type_table,
    const float* position_table, const float* gamma, const float* beta, float* output, float* residual, int rows,
    int batch, int hidden, int words, int token_types, int positions, float epsilon) {
    after_previous();
    embed(ids, types, cu_seqlens, word_table, type_table, position_table, output, residual, rows, batch,
          Tables{words, token_types, positions}, Norm{gamma, beta, hidden, epsilon});
}

extern "C" __global__ void __launch_bounds__(512) embedding_layernorm_f16(
    const int* ids, const int* types, const int* cu_seqlens, const __half* word_table, const __half* type_table,
    const __half* position_table, const float* gamma, const float* beta, __half* output, __half* residual, int rows,
    int batch, int hidden, int words, int token_types, int positions, float epsilon) {
    after_previous();
    embed(ids, types, cu_seqlens, word_table, type_table, position_table, output, residual, rows, batch,
          Tables{words, token_types, positions}, Norm{gamma, beta, hidden, epsilon});
}

extern "C" __global__ void __launch_bounds__(512) embedding_layernorm_bf16(
    const int* ids, const int* types, const int* cu_seqlens, const __nv_bfloat16* word_table,
    const __nv_bfloat16* type_table, const __nv_bfloat16* position_table, const float* gamma, const float* beta,
    __nv_bfloat16* output, __nv_bfloat16* residual, int rows, int batch, int hidden, int words, int token_types,
    int positions, float epsilon) {
    after_previous();
    embed(ids, types, cu_seqlens, word_table, type_table, position_table, output, residual, rows, batch,
          Tables{words, token_types, positions}, Norm{gamma, beta, hidden, epsilon});
}

// counts[b] = positions before the first zero of mask[:, b], mask [S, B]; one warp a sequence, blockDim = (32, n).
extern "C" __global__ void mask_counts(const int* mask, int* counts, int sequence, int batch) {
    after_previous();
    const int b = blockIdx.x * blockDim.y + threadIdx.y;
    if (b >= batch) { return; }
    int first = sequence;
    for (int s = threadIdx.x; s < sequence; s += WARP) {
        if (mask[static_cast<long long>(s) * batch + b] == 0) {
            first = s;
            break;
        }
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        first = min(first, __shfl_xor_sync(ALL_LANES, first, distance));
    }
    if (threadIdx.x == 0) { counts[b] = first; }
}

// counts[b] = length of sequence b.
extern "C" __global__ void length_counts(const int* cu_seqlens, int* counts, int batch) {
    after_previous();
    const int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b < batch) { counts[b] = cu_seqlens[b + 1] - cu_seqlens[b]; }
}
