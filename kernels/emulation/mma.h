// nvcuda::wmma. Which element a lane holds is left open by CUDA; accumulators of 16x16 and 32x8 lie as in sm_80's registers.
#pragma once

#include "matrices.hpp"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32;
}

namespace probe {

template <class T>
struct Element {
    using stored = T;
    using multiplied = T;
    static constexpr int copies(int count) { return count; }
};
template <>
struct Element<precision::tf32> {
    using stored = float;
    using multiplied = probe_emulation::tf32;
    static constexpr int copies(int count) { return count; }
};
template <>
struct Element<__half> : Element<float> {
    using stored = __half;
    using multiplied = __half;
    static constexpr int copies(int) { return 16; }  // of A and B: a lane holds some elements more than once
};

template <class Use, int M, int N, int K>
struct Shape;
template <int M, int N, int K>
struct Shape<matrix_a, M, N, K> {
    static constexpr int rows = M, columns = K;
};
template <int M, int N, int K>
struct Shape<matrix_b, M, N, K> {
    static constexpr int rows = K, columns = N;
};
template <int M, int N, int K>
struct Shape<accumulator, M, N, K> {
    static constexpr int rows = M, columns = N;
};

struct At {
    int row, column;
};

template <class Use, int M, int N, int K>
PROBE_INLINE At place(unsigned lane, int i) {
    constexpr int columns = Shape<Use, M, N, K>::columns;
    if constexpr (std::is_same_v<Use, accumulator> && columns % 8 == 0 && M % 16 == 0 && N <= 16) {
        const int tile = i / 4;
        return {(int)lane / 4 + i / 2 % 2 * 8 + (N == 8 ? 16 * tile : 0), (int)lane % 4 * 2 + i % 2 + (N == 8 ? 0 : 8 * tile)};
    } else {
        const int element = i * 32 + (int)lane;
        return {element / columns, element % columns};
    }
}

template <class Layout>
PROBE_INLINE std::size_t offset(At at, unsigned leading, Layout) {
    if constexpr (std::is_same_v<Layout, layout_t>) return 0;
    else if constexpr (std::is_same_v<Layout, row_major>) return (std::size_t)at.row * leading + at.column;
    else return (std::size_t)at.column * leading + at.row;
}

template <class T>
PROBE_INLINE void begin(const T* matrix, unsigned leading) {
    probe_emulation::require_alignment(matrix, 32);
    if (leading * sizeof(T) % 16) probe_emulation::bad_leading_dimension(leading * sizeof(T));
    probe_emulation::warp_meets();
}

}  // namespace probe

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    using element_type = typename probe::Element<T>::stored;
    using storage_element_type = element_type;
    static constexpr int distinct = probe::Shape<Use, M, N, K>::rows * probe::Shape<Use, M, N, K>::columns / 32;
    static constexpr int num_elements =
        std::is_same_v<Use, accumulator> ? distinct : probe::Element<T>::copies(distinct);
    static constexpr int num_storage_elements = num_elements;
    element_type x[num_elements];
};

template <class Use, int M, int N, int K, class T, class Layout>
PROBE_INLINE void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, const typename fragment<Use, M, N, K, T, Layout>::element_type& v) {
    for (int i = 0; i < f.num_elements; ++i) f.x[i] = v;
}

template <class Use, int M, int N, int K, class T, class Layout>
PROBE_INLINE void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const typename probe::Element<T>::stored* matrix, unsigned leading) {
    probe::begin(matrix, leading);
    for (int i = 0; i < f.num_elements; ++i) {
        const auto at = probe::place<Use, M, N, K>(probe_emulation::lane(), i % f.distinct);
        f.x[i] = matrix[probe::offset(at, leading, Layout())];
    }
}

template <int M, int N, int K, class T>
PROBE_INLINE void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* matrix, unsigned leading, layout_t layout) {
    probe::begin(matrix, leading);
    for (int i = 0; i < f.num_elements; ++i) {
        const auto at = probe::place<accumulator, M, N, K>(probe_emulation::lane(), i);
        f.x[i] = matrix[layout == mem_row_major ? probe::offset(at, leading, row_major()) : probe::offset(at, leading, col_major())];
    }
}

template <int M, int N, int K, class T>
PROBE_INLINE void store_matrix_sync(T* matrix, const fragment<accumulator, M, N, K, T>& f, unsigned leading, layout_t layout) {
    probe::begin(matrix, leading);
    for (int i = 0; i < f.num_elements; ++i) {
        const auto at = probe::place<accumulator, M, N, K>(probe_emulation::lane(), i);
        matrix[layout == mem_row_major ? probe::offset(at, leading, row_major()) : probe::offset(at, leading, col_major())] = f.x[i];
    }
}

template <int M, int N, int K, class D, class A, class LayoutA, class B, class LayoutB, class C>
PROBE_INLINE void mma_sync(
    fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, A, LayoutA>& a,
    const fragment<matrix_b, M, N, K, B, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c, bool = false) {
    using Factor = typename probe::Element<A>::multiplied;
    const auto all_a = probe_emulation::warp_exchange(a);
    const auto all_b = probe_emulation::warp_exchange(b);
    const auto get = [](const auto& all, int element) {
        return probe_emulation::factor(probe_emulation::bits_as<Factor>(all[element % 32].x[element / 32]));
    };
    for (int i = 0; i < d.num_elements; ++i) {
        const auto at = probe::place<accumulator, M, N, K>(probe_emulation::lane(), i);
        decltype(get(all_a, 0)) sum = 0;
        for (int k = 0; k < K; ++k) sum = probe_emulation::multiplied(get(all_a, at.row * K + k), get(all_b, k * N + at.column), sum);
        if constexpr (std::is_same_v<C, int>) d.x[i] = (int)((unsigned)c.x[i] + (unsigned)sum);
        else d.x[i] = D((decltype(sum))c.x[i] + sum);
    }
}

PROBE_INLINE float __float_to_tf32(float v) {  // to nearest, ties away from zero
    const unsigned bits = probe_emulation::bits_as<unsigned>(v);
    return v != v ? v : probe_emulation::bits_as<float>((bits + 0x1000u) & 0xffffe000u);
}

}  // namespace nvcuda::wmma
