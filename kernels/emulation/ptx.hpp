// Instructions of PTX as functions: `harness/emulation/ptx.py` turns inline PTX into calls of these. A name is that of the
// instruction with what it does to a GPU alone left out (.sync.aligned, state spaces, caches, rounding to nearest) and an
// underscore at its end; types are template arguments; operands come in their order, those in braces one by one.
#pragma once

#include "atomics.hpp"
#include "eight_bits.hpp"
#include "matrices.hpp"

namespace probe_emulation::ptx {

using probe_emulation::tf32;

inline unsigned nowhere;  // `_`

// A register holds bits; what it is declared as in C++ need not be what the instruction takes it for.
template <class T, class V>
PROBE_INLINE T get(const V& value) {
    if constexpr (sizeof(T) == sizeof(V) && std::is_trivially_copyable_v<V>) return bits_as<T>(value);
    else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, tf32>) return bits_as<T>((std::conditional_t<sizeof(T) == 8, unsigned long long, std::conditional_t<sizeof(T) == 4, unsigned, std::conditional_t<sizeof(T) == 2, unsigned short, unsigned char>>>)value);
    else return bits_as<T>((std::conditional_t<sizeof(T) == 4, unsigned, unsigned short>)value);
}
template <class T, class V>
PROBE_INLINE void put(V& to, const T& value) {
    if constexpr (std::is_const_v<V>) return;  // what is only read
    else if constexpr (sizeof(T) == sizeof(V)) to = bits_as<V>(value);
    else if constexpr (std::is_arithmetic_v<T>) to = (V)value;
    else to = (V)bits_as<std::conditional_t<sizeof(T) == 4, unsigned, unsigned short>>(value);
}

template <class A>
PROBE_INLINE unsigned char* in_shared(const A& address, long offset) {
    if constexpr (std::is_pointer_v<A>) return (unsigned char*)address + offset;
    else return from_shared_window((unsigned)address) + offset;
}
template <class A>
PROBE_INLINE unsigned char* in_global(const A& address, long offset) { return (unsigned char*)address + offset; }

// ---- memory

template <class T, int N>
PROBE_INLINE T* vector_at(unsigned char* address) {
    if (N > 1) require_alignment(address, sizeof(T) * N);
    return (T*)address;
}
template <class T, class D> PROBE_INLINE void ld_(D& d, unsigned char* p) { put(d, *(const T*)p); }
template <class T, class D> PROBE_INLINE void ld_v2_(D& a, D& b, unsigned char* p) {
    const T* v = vector_at<T, 2>(p);
    put(a, v[0]), put(b, v[1]);
}
template <class T, class D> PROBE_INLINE void ld_v4_(D& a, D& b, D& c, D& d, unsigned char* p) {
    const T* v = vector_at<T, 4>(p);
    put(a, v[0]), put(b, v[1]), put(c, v[2]), put(d, v[3]);
}
template <class T, class V> PROBE_INLINE void st_(unsigned char* p, const V& v) { *(T*)p = get<T>(v); }
template <class T, class V> PROBE_INLINE void st_v2_(unsigned char* p, const V& a, const V& b) {
    T* v = vector_at<T, 2>(p);
    v[0] = get<T>(a), v[1] = get<T>(b);
}
template <class T, class V> PROBE_INLINE void st_v4_(unsigned char* p, const V& a, const V& b, const V& c, const V& d) {
    T* v = vector_at<T, 4>(p);
    v[0] = get<T>(a), v[1] = get<T>(b), v[2] = get<T>(c), v[3] = get<T>(d);
}
#define PROBE_ATOM(name, function)                                                                                  \
    template <class T, class V> PROBE_INLINE void red_##name##_(unsigned char* p, const V& v) { function((T*)p, get<T>(v)); } \
    template <class T, class D, class V> PROBE_INLINE void atom_##name##_(D& d, unsigned char* p, const V& v) {     \
        put(d, function((T*)p, get<T>(v)));                                                                         \
    }
PROBE_ATOM(add, atomicAdd)
PROBE_ATOM(min, atomicMin)
PROBE_ATOM(max, atomicMax)
PROBE_ATOM(and, atomicAnd)
PROBE_ATOM(or, atomicOr)
PROBE_ATOM(xor, atomicXor)
PROBE_ATOM(inc, atomicInc)
PROBE_ATOM(dec, atomicDec)
PROBE_ATOM(exch, atomicExch)
#undef PROBE_ATOM
template <class T, class D, class V, class W>
PROBE_INLINE void atom_cas_(D& d, unsigned char* p, const V& expected, const W& value) {
    put(d, atomicCAS((T*)p, get<T>(expected), get<T>(value)));
}
template <class P> PROBE_INLINE void prefetch_(const P&) {}
template <class T, class D, class V> PROBE_INLINE void cvta_to_shared_(D& d, const V& address) { d = (D)shared_window((const void*)address); }
template <class T, class D, class V> PROBE_INLINE void cvta_shared_(D& d, const V& at) { d = (D)from_shared_window((unsigned)at); }
template <class T, class D, class V> PROBE_INLINE void cvta_to_(D& d, const V& address) { d = (D)address; }
template <class T, class D, class V> PROBE_INLINE void cvta_(D& d, const V& address) { d = (D)address; }

PROBE_INLINE void cp_async_(unsigned char* to, const unsigned char* from, int bytes, int given) {
    require_alignment(to, (unsigned)bytes), require_alignment(from, (unsigned)bytes);
    copy_later(to, from, (unsigned)bytes, (unsigned)given);
}
PROBE_INLINE void cp_async_(unsigned char* to, const unsigned char* from, int bytes) { cp_async_(to, from, bytes, bytes); }
PROBE_INLINE void cp_async_commit_group_() { commit_copies(); }
PROBE_INLINE void cp_async_wait_group_(int prior) { wait_for_copies((std::size_t)prior); }
PROBE_INLINE void cp_async_wait_all_() { wait_for_all_copies(); }

// ---- meeting

PROBE_INLINE void bar_sync_(unsigned id) { barrier(id, 0); }
PROBE_INLINE void bar_sync_(unsigned id, unsigned threads) { barrier(id, threads); }
PROBE_INLINE void barrier_sync_(unsigned id) { barrier(id, 0); }
PROBE_INLINE void barrier_sync_(unsigned id, unsigned threads) { barrier(id, threads); }
PROBE_INLINE void bar_arrive_(unsigned id, unsigned threads) { barrier_arrive(id, threads); }
PROBE_INLINE void barrier_arrive_(unsigned id, unsigned threads) { barrier_arrive(id, threads); }
PROBE_INLINE void bar_warp_sync_(unsigned mask) { __syncwarp(mask); }
PROBE_INLINE void fence_() { fence(); }
PROBE_INLINE void fence_proxy_() {}
PROBE_INLINE void griddepcontrol_wait_() {}
PROBE_INLINE void griddepcontrol_launch_dependents_() {}
template <class T> PROBE_INLINE void nanosleep_(unsigned) { yield(); }
PROBE_INLINE void trap_() { trap(); }
PROBE_INLINE void brkpt_() { trap(); }

// The last operand but one of shfl holds the segment's mask and the clamp: 0x1f, or 0 for `up`, for all 32 lanes.
constexpr int width_of(unsigned c) { return 32 - (int)(c >> 8 & 0x1f); }
#define PROBE_SHUFFLE(name, function)                                                                                    \
    template <class T, class D, class V> PROBE_INLINE void shfl_##name##_(D& d, const V& v, int b, unsigned c, unsigned mask) { \
        put(d, function(mask, get<T>(v), b, width_of(c)));                                                               \
    }
PROBE_SHUFFLE(idx, __shfl_sync)
PROBE_SHUFFLE(up, __shfl_up_sync)
PROBE_SHUFFLE(down, __shfl_down_sync)
PROBE_SHUFFLE(bfly, __shfl_xor_sync)
#undef PROBE_SHUFFLE
template <class T, class D> PROBE_INLINE void vote_ballot_(D& d, int p, unsigned mask) { d = (D)__ballot_sync(mask, p); }
template <class T, class D> PROBE_INLINE void vote_any_(D& d, int p, unsigned mask) { d = (D)__any_sync(mask, p); }
template <class T, class D> PROBE_INLINE void vote_all_(D& d, int p, unsigned mask) { d = (D)__all_sync(mask, p); }
template <class T, class D, class V> PROBE_INLINE void match_any_(D& d, const V& v, unsigned mask) { d = (D)__match_any_sync(mask, get<T>(v)); }
template <class T, class D> PROBE_INLINE void activemask_(D& d) { d = (D)__activemask(); }
template <class T, class D, class V> PROBE_INLINE void redux_add_(D& d, const V& v, unsigned mask) { put(d, __reduce_add_sync(mask, get<T>(v))); }
template <class T, class D, class V> PROBE_INLINE void redux_min_(D& d, const V& v, unsigned mask) { put(d, __reduce_min_sync(mask, get<T>(v))); }
template <class T, class D, class V> PROBE_INLINE void redux_max_(D& d, const V& v, unsigned mask) { put(d, __reduce_max_sync(mask, get<T>(v))); }
template <class D, class P> PROBE_INLINE void elect_p_(D& d, P& p, unsigned mask) {
    d = (D)(__ffs((int)__ballot_sync(mask, 1)) - 1);
    p = (P)(lane() == (unsigned)d);
}

// ---- matrices

// Row i of matrix m of 8x8 elements of 16 bits begins where lane 8 m + i says.
template <int N, bool Transposed, class... D>
PROBE_INLINE void load_matrices(unsigned char* row, D&... d) {
    if (lane() < 8 * N) require_alignment(row, 16);
    const auto rows = warp_exchange(row);
    int m = 0;
    const auto one = [&](int m) {
        const unsigned short *a, *b;  // the two elements that this lane gets
        const unsigned r = lane() / 4, c = lane() % 4 * 2;
        if (Transposed) a = (const unsigned short*)rows[8 * m + c] + r, b = (const unsigned short*)rows[8 * m + c + 1] + r;
        else a = (const unsigned short*)rows[8 * m + r] + c, b = a + 1;
        return (unsigned)*a | (unsigned)*b << 16;
    };
    ((put(d, one(m)), ++m), ...);
}
template <class T, class D> PROBE_INLINE void ldmatrix_x1_(D& a, unsigned char* p) { load_matrices<1, false>(p, a); }
template <class T, class D> PROBE_INLINE void ldmatrix_x2_(D& a, D& b, unsigned char* p) { load_matrices<2, false>(p, a, b); }
template <class T, class D> PROBE_INLINE void ldmatrix_x4_(D& a, D& b, D& c, D& d, unsigned char* p) { load_matrices<4, false>(p, a, b, c, d); }
template <class T, class D> PROBE_INLINE void ldmatrix_x1_trans_(D& a, unsigned char* p) { load_matrices<1, true>(p, a); }
template <class T, class D> PROBE_INLINE void ldmatrix_x2_trans_(D& a, D& b, unsigned char* p) { load_matrices<2, true>(p, a, b); }
template <class T, class D> PROBE_INLINE void ldmatrix_x4_trans_(D& a, D& b, D& c, D& d, unsigned char* p) { load_matrices<4, true>(p, a, b, c, d); }

template <int N, bool Transposed, class... D>
PROBE_INLINE void store_matrices(unsigned char* row, const D&... d) {
    if (lane() < 8 * N) require_alignment(row, 16);
    const auto rows = warp_exchange(row);
    int m = 0;
    const auto one = [&](int m, unsigned v) {
        const unsigned r = lane() / 4, c = lane() % 4 * 2;
        unsigned short* a = Transposed ? (unsigned short*)rows[8 * m + c] + r : (unsigned short*)rows[8 * m + r] + c;
        unsigned short* b = Transposed ? (unsigned short*)rows[8 * m + c + 1] + r : a + 1;
        *a = (unsigned short)v, *b = (unsigned short)(v >> 16);
    };
    ((one(m, get<unsigned>(d)), ++m), ...);
}
template <class T, class V> PROBE_INLINE void stmatrix_x1_(unsigned char* p, const V& a) { store_matrices<1, false>(p, a); }
template <class T, class V> PROBE_INLINE void stmatrix_x2_(unsigned char* p, const V& a, const V& b) { store_matrices<2, false>(p, a, b); }
template <class T, class V> PROBE_INLINE void stmatrix_x4_(unsigned char* p, const V& a, const V& b, const V& c, const V& d) { store_matrices<4, false>(p, a, b, c, d); }
template <class T, class V> PROBE_INLINE void stmatrix_x1_trans_(unsigned char* p, const V& a) { store_matrices<1, true>(p, a); }
template <class T, class V> PROBE_INLINE void stmatrix_x2_trans_(unsigned char* p, const V& a, const V& b) { store_matrices<2, true>(p, a, b); }
template <class T, class V> PROBE_INLINE void stmatrix_x4_trans_(unsigned char* p, const V& a, const V& b, const V& c, const V& d) { store_matrices<4, true>(p, a, b, c, d); }

// m16n8: a register of A holds `per` neighbours in k; registers 0 and 1 are rows g and g + 8, 2 and 3 the same further in k.
// A register of C and D is one element of 32 bits or two halves, side by side.
template <class T>
PROBE_INLINE T element(unsigned word, int j) {
    if constexpr (sizeof(T) == 4) return bits_as<T>(word);
    else if constexpr (sizeof(T) == 2) return bits_as<T>((unsigned short)(word >> 16 * j));
    else return bits_as<T>((unsigned char)(word >> 8 * j));
}
template <int K, class D, class A, class B, class C, class... R>
PROBE_INLINE void multiply16x8(R&&... registers) {
    constexpr int per = 4 / (int)sizeof(A), na = K / per / 2, nb = na / 2, nd = (int)sizeof(D), nc = (int)sizeof(C);
    static_assert(sizeof...(R) == nd + na + nb + nc, "mma: the number of operands");
    struct Factors {
        unsigned a[na], b[nb];
    } mine;
    unsigned words[nd + na + nb + nc], made[4] = {};
    int at = 0;
    ((words[at++] = get<unsigned>(registers)), ...);
    __builtin_memcpy(&mine, words + nd, sizeof mine);
    const unsigned* start = words + nd + na + nb;
    const auto all = warp_exchange(mine);
    for (int i = 0; i < 4; ++i) {
        const unsigned row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        const C before = element<C>(sizeof(C) == 4 ? start[i] : start[i / 2], i % 2);
        decltype(factor(A())) sum = 0;
        for (int k = 0; k < K; ++k) {
            const int four = k / per % 4, step = k / per / 4;
            const auto a = factor(element<A>(all[row % 8 * 4 + four].a[row / 8 + 2 * step], k % per));
            sum = multiplied(a, factor(element<B>(all[column * 4 + four].b[step], k % per)), sum);
        }
        if constexpr (std::is_same_v<D, int>) made[i] = (unsigned)before + (unsigned)sum;
        else if constexpr (sizeof(D) == 4) made[i] = bits_as<unsigned>((float)before + sum);
        else made[i / 2] |= (unsigned)bits_as<unsigned short>(D((float)before + sum)) << 16 * (i % 2);
    }
    at = 0;
    ((at < nd ? put(registers, made[at]) : void(), ++at), ...);
}
#define PROBE_MMA(k)                                                                                         \
    template <class D, class A, class B, class C, class... R> PROBE_INLINE void mma_m16n8k##k##_row_col_(R&&... r) { \
        multiply16x8<k, D, A, B, C>(r...);                                                                   \
    }
PROBE_MMA(4)
PROBE_MMA(8)
PROBE_MMA(16)
PROBE_MMA(32)
#undef PROBE_MMA

// ---- arithmetic

#define PROBE_ONE(name, expression) \
    template <class T, class D, class V> PROBE_INLINE void name##_(D& d, const V& v) { const T a = get<T>(v); put(d, (T)(expression)); }
PROBE_ONE(mov, a)
PROBE_ONE(neg, -a)
PROBE_ONE(not, ~a)
PROBE_ONE(abs, a < T(0) ? T(-a) : a)
PROBE_ONE(ex2, exp2f((float)a))
PROBE_ONE(lg2, log2f((float)a))
PROBE_ONE(rcp, T(1) / a)
PROBE_ONE(sqrt, std::sqrt(a))
PROBE_ONE(rsqrt, rsqrt(a))
PROBE_ONE(sin, sinf(a))
PROBE_ONE(cos, cosf(a))
PROBE_ONE(tanh, tanhf((float)a))
PROBE_ONE(brev, __brev(a))
#undef PROBE_ONE
template <class T, class D, class V> PROBE_INLINE void popc_(D& d, const V& v) { d = (D)__popcll(get<T>(v)); }
template <class T, class D, class V> PROBE_INLINE void clz_(D& d, const V& v) { d = (D)(__clzll((long long)get<T>(v)) - 64 + 8 * (int)sizeof(T)); }
#define PROBE_TWO(name, expression)                                                                    \
    template <class T, class D, class V, class W> PROBE_INLINE void name##_(D& d, const V& v, const W& w) { \
        const T a = get<T>(v), b = get<T>(w);                                                          \
        put(d, (T)(expression));                                                                       \
    }
PROBE_TWO(add, a + b)
PROBE_TWO(sub, a - b)
PROBE_TWO(mul, a * b)
PROBE_TWO(mul_lo, a * b)
PROBE_TWO(mul_hi, ((__int128)a * b) >> (8 * sizeof(T)))
PROBE_TWO(div, a / b)
PROBE_TWO(rem, a % b)
PROBE_TWO(min, min(a, b))
PROBE_TWO(max, max(a, b))
PROBE_TWO(and, a & b)
PROBE_TWO(or, a | b)
PROBE_TWO(xor, a ^ b)
#undef PROBE_TWO
template <class T, class D, class V> PROBE_INLINE void shl_(D& d, const V& v, unsigned by) { put(d, by < 8 * sizeof(T) ? (T)(get<T>(v) << by) : T(0)); }
template <class T, class D, class V> PROBE_INLINE void shr_(D& d, const V& v, unsigned by) { put(d, (T)(get<T>(v) >> std::min<unsigned>(by, 8 * sizeof(T) - 1) >> (by >= 8 * sizeof(T)))); }
template <class T, class D, class V, class W> PROBE_INLINE void mul_wide_(D& d, const V& v, const W& w) { d = (D)((std::conditional_t<std::is_signed_v<T>, long long, unsigned long long>)get<T>(v) * get<T>(w)); }
template <class T, class D, class V, class W, class X> PROBE_INLINE void mad_lo_(D& d, const V& a, const W& b, const X& c) { put(d, (T)(get<T>(a) * get<T>(b) + get<T>(c))); }
PROBE_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
PROBE_INLINE double fused(double a, double b, double c) { return ::fma(a, b, c); }
template <class F> PROBE_INLINE Small<F> fused(Small<F> a, Small<F> b, Small<F> c) { return __hfma(a, b, c); }
template <class F> PROBE_INLINE Pair<F> fused(Pair<F> a, Pair<F> b, Pair<F> c) { return __hfma2(a, b, c); }
template <class T, class D, class V, class W, class X> PROBE_INLINE void fma_(D& d, const V& a, const W& b, const X& c) { put(d, fused(get<T>(a), get<T>(b), get<T>(c))); }

// Each bit of the table is what the three bits at a place give.
template <class T, class D, class V, class W, class X>
PROBE_INLINE void lop3_(D& d, const V& v, const W& w, const X& x, unsigned table) {
    const unsigned a = get<unsigned>(v), b = get<unsigned>(w), c = get<unsigned>(x);
    unsigned made = 0;
    for (unsigned i = 0; i < 8; ++i)
        if (table >> i & 1u) made |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    put(d, made);
}
template <class T, class D, class V, class W> PROBE_INLINE void prmt_(D& d, const V& a, const W& b, unsigned selector) { put(d, __byte_perm(get<unsigned>(a), get<unsigned>(b), selector)); }
template <class T, class D, class V>
PROBE_INLINE void bfe_(D& d, const V& v, unsigned at, unsigned bits) {
    const long long wide = (long long)get<T>(v);
    put(d, (T)(bits == 0 ? 0 : std::is_signed_v<T> ? wide << (64 - at - bits) >> (64 - bits) : wide >> at & (long long)(~0ull >> (64 - bits))));
}
template <class T, class D, class V, class W>
PROBE_INLINE void bfi_(D& d, const V& v, const W& w, unsigned at, unsigned bits) {
    const T mask = (T)((bits >= 8 * sizeof(T) ? ~0ull : (1ull << bits) - 1) << at);
    put(d, (T)((get<T>(w) & ~mask) | ((T)(get<T>(v) << at) & mask)));
}
template <class T, class D, class V, class W> PROBE_INLINE void shf_l_wrap_(D& d, const V& a, const W& b, unsigned by) { put(d, __funnelshift_l(get<unsigned>(a), get<unsigned>(b), by)); }
template <class T, class D, class V, class W> PROBE_INLINE void shf_r_wrap_(D& d, const V& a, const W& b, unsigned by) { put(d, __funnelshift_r(get<unsigned>(a), get<unsigned>(b), by)); }
template <class T, class D, class V, class W> PROBE_INLINE void selp_(D& d, const V& a, const W& b, bool p) { put(d, p ? get<T>(a) : get<T>(b)); }
#define PROBE_SETP(name, op) \
    template <class T, class P, class V, class W> PROBE_INLINE void setp_##name##_(P& p, const V& a, const W& b) { p = get<T>(a) op get<T>(b); }
PROBE_SETP(eq, ==)
PROBE_SETP(ne, !=)
PROBE_SETP(lt, <)
PROBE_SETP(le, <=)
PROBE_SETP(gt, >)
PROBE_SETP(ge, >=)
#undef PROBE_SETP

// ---- conversions

template <class T, class D, class V, class W> PROBE_INLINE void mov_pack_(D& d, const V& low, const W& high) {
    using Half = std::conditional_t<sizeof(T) == 8, unsigned, unsigned short>;
    put(d, (std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>)get<Half>(low) | (std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>)get<Half>(high) << 8 * sizeof(Half));
}
template <class T, class D, class E, class V> PROBE_INLINE void mov_unpack_(D& low, E& high, const V& v) {
    using Half = std::conditional_t<sizeof(T) == 8, unsigned, unsigned short>;
    const unsigned long long word = get<std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>>(v);
    put(low, (Half)word), put(high, (Half)(word >> 8 * sizeof(Half)));
}
template <class To, class From, class D, class V> PROBE_INLINE void cvt_(D& d, const V& v) {
    const From a = get<From>(v);
    if constexpr (std::is_same_v<To, tf32>) put(d, a);
    else if constexpr (std::is_same_v<To, __half2>) put(d, __half2{__half(a.low()), __half(a.high())});
    else put(d, (To)a);
}
#define PROBE_TO_INTEGER(mode, function) \
    template <class To, class From, class D, class V> PROBE_INLINE void cvt_##mode##_(D& d, const V& v) { put(d, saturated<To>(function((double)get<From>(v)))); }
PROBE_TO_INTEGER(rni, nearbyint)
PROBE_TO_INTEGER(rzi, trunc)
PROBE_TO_INTEGER(rmi, floor)
PROBE_TO_INTEGER(rpi, ceil)
#undef PROBE_TO_INTEGER
template <class To, class From, class D, class V> PROBE_INLINE void cvt_rna_(D& d, const V& v) {
    put(d, (bits_as<unsigned>(get<float>(v)) + 0x1000u) & 0xffffe000u);
}
// Two floats into one register: the first operand is the upper half.
template <class To, class From, class D, class V, class W> PROBE_INLINE void cvt_(D& d, const V& high, const W& low) {
    put(d, To{decltype(To::x)(get<From>(low)), decltype(To::x)(get<From>(high))});
}
template <class To, class From, class D, class V, class W> PROBE_INLINE void cvt_satfinite_(D& d, const V& high, const W& low) {
    put(d, To::of((float)get<From>(low), (float)get<From>(high)));
}

}  // namespace probe_emulation::ptx
