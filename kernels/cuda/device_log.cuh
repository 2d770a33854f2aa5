// The device log: values of chosen threads, as typed records in a preallocated buffer, none overwritten and none torn.
//
//     PROBE("mean", mean);                 one value under a tag
//     PROBE("row", mean, rstd, x[i]);      several: each is a row of its own, named after its expression
//     PROBE_IF(mean > 10.f, "mean", mean); only where the condition holds
//
// Without PROBE_ON all of it compiles to nothing. With it, the host points `probe_device_log` at a buffer
// (harness/device_log/layout.py) and says there which threads are to be logged; without a buffer nothing is logged.
//
// Every PROBE claims all its slots with one atomic (on the GPU one a warp), then writes them. A slot carries a check word
// over its content, so that a reader who comes after a crash can tell a whole record from a torn one, and no fence is
// needed between its two halves. What does not fit is counted, never written.
#pragma once

#ifndef PROBE_ON

#define PROBE(...) ((void)0)
#define PROBE_IF(...) ((void)0)

#else

#ifdef PROBE_EMULATION
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define PROBE_LOG_DEVICE inline __attribute__((no_sanitize("thread")))
#define PROBE_LOG_COLD __attribute__((no_sanitize("thread"), noinline)) inline
#define PROBE_LOG_SHARED inline
#else
struct __half;
struct __half2;
struct __nv_bfloat16;
struct __nv_bfloat162;
#define PROBE_LOG_DEVICE __device__ __forceinline__
#define PROBE_LOG_COLD __device__ __noinline__ inline
#define PROBE_LOG_SHARED __host__ __device__ inline
#endif

namespace probe_log {

typedef unsigned int u32;
typedef unsigned long long u64;

// harness/device_log/layout.py knows these layouts by heart.
enum : u32 { SITES = 1024, SITE_TEXT = 504, MAX_VALUES = 32, MAX_PIECES = 64 };

enum Type : u32 { BOOL, I8, U8, I16, U16, I32, U32, I64, U64, F16, BF16, F32, F64, POINTER };

struct alignas(16) Slot {
  u32 site;    // hash of where it was written; 0 only in a slot that was never written
  u32 check;   // of all the rest
  u64 block;   // x: 31 bits, y: 16, z: 16, then whether this is the value's last piece
  u32 thread;  // x: 10 bits, y: 10, z: 6, then the type: 4
  u32 meta;    // launch: 18 bits, value of the PROBE: 5, piece of the value: 6, elements in this piece less one: 3
  u64 bits;    // the elements, the first in the lowest bits
};

struct Site {
  u32 hash, line;
  char text[SITE_TEXT];  // file, tag, and the expressions, each ended by a zero
};

struct Control {
  u64 next;             // slots claimed so far, also beyond the capacity
  u64 lost;             // values that found no room
  u32 launch;           // the number of the launch that is running
  u32 printed;          // calls of printf, where they are counted
  u32 sites[SITES];     // hashes of the sites that have an entry, at the entry's place
  u32 fired[SITES];     // of PROBE_WATCH: whether this site has spoken
};

struct Range {
  u32 low, span;  // low <= value <= low + span
};

// Slots of lanes that claimed together: those of their first values side by side, then those of their second ones, so
// that each store of a warp writes whole lines.
struct Claim {
  u64 first;
  u32 rank, lanes;  // of this lane among them, and how many they are
};

struct Log {
  Control* control;  // null: nothing is logged
  Slot* slots;
  Site* site_table;
  u64 capacity;  // slots
  u32 epoch;     // goes into the check: what an earlier use of the buffer left there is no record
  u32 blind;     // in a file: the counters were lost with the context
  Range block[3], thread[3], warp;
};

}  // namespace probe_log

#ifdef PROBE_EMULATION

namespace probe_log {

// The log is a file that the host made (PROBE_DEVICE_LOG): a page that starts with a Log whose pointers are offsets into
// the file, then what they point to. What was written stays there, however this process ends.
__attribute__((no_sanitize("thread"))) inline Log attach() {
  Log log = {};
  const char* path = getenv("PROBE_DEVICE_LOG");
  int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  struct stat facts;
  if (file < 0) return log;
  if (fstat(file, &facts) == 0) {
    char* base = (char*)mmap(0, facts.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base != (char*)MAP_FAILED) {
      log = *(const Log*)base;
      log.control = (Control*)(base + (u64)log.control);
      log.slots = (Slot*)(base + (u64)log.slots);
      log.site_table = (Site*)(base + (u64)log.site_table);
    }
  }
  close(file);
  return log;
}

__attribute__((no_sanitize("thread"))) inline const Log& current() {
  static const Log log = attach();
  return log;
}

PROBE_LOG_DEVICE u64 add(u64* at, u64 value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
PROBE_LOG_DEVICE void count(u32* at) { __atomic_fetch_add(at, 1u, __ATOMIC_RELAXED); }
PROBE_LOG_DEVICE u32 exchange(u32* at, u32 value) { return __atomic_exchange_n(at, value, __ATOMIC_RELAXED); }
PROBE_LOG_DEVICE u32 swap_if_zero(u32* at, u32 value) {
  u32 expected = 0;
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
PROBE_LOG_DEVICE Claim claim(u64* at, u32 slots) { return {add(at, slots), 0, 1}; }
PROBE_LOG_DEVICE void store(Slot* at, const Slot& slot) { *at = slot; }

}  // namespace probe_log

#else

extern "C" {
#ifdef __CUDACC_RDC__
inline  // one log for all that is linked together
#endif
    __constant__ probe_log::Log probe_device_log;
}

namespace probe_log {

PROBE_LOG_DEVICE const Log& current() { return probe_device_log; }
PROBE_LOG_DEVICE u64 add(u64* at, u64 value) { return atomicAdd(at, value); }
PROBE_LOG_DEVICE void count(u32* at) { atomicAdd(at, 1u); }
PROBE_LOG_DEVICE u32 exchange(u32* at, u32 value) { return atomicExch(at, value); }
PROBE_LOG_DEVICE u32 swap_if_zero(u32* at, u32 value) { return atomicCAS(at, 0u, value); }

// The lanes that came here together claim together.
PROBE_LOG_DEVICE Claim claim(u64* at, u32 slots) {
  const u32 together = __activemask(), lanes = (u32)__popc(together);
  u32 lane, before;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(before));
  const u32 leader = __ffs(together) - 1;
  u64 first = 0;
  if (lane == leader) first = atomicAdd(at, (u64)(slots * lanes));
  first = __shfl_sync(together, first, leader);
  return {first, (u32)__popc(together & before), lanes};
}

PROBE_LOG_DEVICE void store(Slot* at, const Slot& slot) {
  const uint4* from = reinterpret_cast<const uint4*>(&slot);
  uint4* to = reinterpret_cast<uint4*>(at);
  to[0] = from[0];
  to[1] = from[1];
}

}  // namespace probe_log

#endif

namespace probe_log {

// How a type is logged: its elements' type and their number.
template <Type type_, u32 elements_>
struct Is {
  static const bool known = true;
  static const Type type = type_;
  static const u32 elements = elements_;
};
template <typename T>
struct Shape {
  static const bool known = false;
  static const Type type = U8;
  static const u32 elements = 0;
};
struct Nothing {};
template <> struct Shape<Nothing> : Is<U8, 0> {};
template <> struct Shape<bool> : Is<BOOL, 1> {};
template <> struct Shape<char> : Is<I8, 1> {};
template <> struct Shape<signed char> : Is<I8, 1> {};
template <> struct Shape<unsigned char> : Is<U8, 1> {};
template <> struct Shape<short> : Is<I16, 1> {};
template <> struct Shape<unsigned short> : Is<U16, 1> {};
template <> struct Shape<int> : Is<I32, 1> {};
template <> struct Shape<unsigned> : Is<U32, 1> {};
template <> struct Shape<long> : Is<sizeof(long) == 8 ? I64 : I32, 1> {};
template <> struct Shape<unsigned long> : Is<sizeof(long) == 8 ? U64 : U32, 1> {};
template <> struct Shape<long long> : Is<I64, 1> {};
template <> struct Shape<unsigned long long> : Is<U64, 1> {};
template <> struct Shape<float> : Is<F32, 1> {};
template <> struct Shape<double> : Is<F64, 1> {};
template <> struct Shape<__half> : Is<F16, 1> {};
template <> struct Shape<__half2> : Is<F16, 2> {};
template <> struct Shape<__nv_bfloat16> : Is<BF16, 1> {};
template <> struct Shape<__nv_bfloat162> : Is<BF16, 2> {};
template <typename T> struct Shape<T*> : Is<POINTER, 1> {};
#ifndef PROBE_EMULATION
template <typename T> struct Shape<T* __restrict__> : Is<POINTER, 1> {};  // of nvcc's parameters: a type of its own
#endif
#define PROBE_LOG_VECTORS(name, type)            \
  template <> struct Shape<name##1> : Is<type, 1> {}; \
  template <> struct Shape<name##2> : Is<type, 2> {}; \
  template <> struct Shape<name##3> : Is<type, 3> {}; \
  template <> struct Shape<name##4> : Is<type, 4> {};
PROBE_LOG_VECTORS(char, I8)
PROBE_LOG_VECTORS(uchar, U8)
PROBE_LOG_VECTORS(short, I16)
PROBE_LOG_VECTORS(ushort, U16)
PROBE_LOG_VECTORS(int, I32)
PROBE_LOG_VECTORS(uint, U32)
PROBE_LOG_VECTORS(float, F32)
#undef PROBE_LOG_VECTORS
template <> struct Shape<double2> : Is<F64, 2> {};
template <> struct Shape<longlong2> : Is<I64, 2> {};
template <> struct Shape<ulonglong2> : Is<U64, 2> {};
template <> struct Shape<dim3> : Is<U32, 3> {};
template <typename T, decltype(sizeof(0)) N>
struct Shape<T[N]> : Is<Shape<T>::type, Shape<T>::elements * u32(N)> {
  static const bool known = Shape<T>::known;
};

template <typename T> struct Plain { typedef T type; };
template <typename T> struct Plain<const T> { typedef T type; };
template <typename T> struct Plain<volatile T> { typedef T type; };
template <typename T> struct Plain<const volatile T> { typedef T type; };
template <typename T, decltype(sizeof(0)) N> struct Plain<const T[N]> { typedef T type[N]; };
template <typename T, decltype(sizeof(0)) N> struct Plain<volatile T[N]> { typedef T type[N]; };

// What an expression is handed on as: a number by its value, so that a constant of the host, which has no address here,
// may be logged; all else as it is. T is decltype((expression)).
template <typename T> struct IsArray { static const bool value = false; };
template <typename T, decltype(sizeof(0)) N> struct IsArray<T[N]> { static const bool value = true; };
template <typename T, bool whole> struct KeptAs { typedef T& type; };
template <typename T> struct KeptAs<T, false> { typedef typename Plain<T>::type type; };
template <typename T> struct Kept { typedef T type; };
template <typename T> struct Kept<T&> : KeptAs<T, __is_class(T) || __is_union(T) || IsArray<T>::value> {};
template <typename T> struct Kept<T&&> : KeptAs<const T, __is_class(T) || __is_union(T) || IsArray<T>::value> {};

template <typename T, bool is_enum> struct Number { typedef typename Plain<T>::type type; };
template <typename T> struct Number<T, true> { typedef __underlying_type(T) type; };
template <typename T>
struct Described : Shape<typename Number<T, __is_enum(T)>::type> {};

// A number that is certain to be worked out by the compiler.
template <u32 number>
struct Constant {
  static const u32 value = number;
};

PROBE_LOG_SHARED constexpr u32 width(Type type) {
  return type <= U8 ? 1 : type <= U16 || type == F16 || type == BF16 ? 2 : type == I32 || type == U32 || type == F32 ? 4 : 8;
}

template <typename T>
PROBE_LOG_SHARED constexpr u32 pieces() {
  return (Described<T>::elements * width(Described<T>::type) + 7) / 8;
}

PROBE_LOG_SHARED constexpr u32 hash(const char* text, u32 seed) {
  while (*text) seed = (seed ^ (unsigned char)*text++) * 16777619u;
  return seed ? seed : 1u;
}

PROBE_LOG_SHARED constexpr u32 hash(const char* file, u32 line, const char* tag, const char* expressions) {
  return hash(expressions, hash(tag, hash(file, 2166136261u ^ line) * 31u) * 31u);
}

// Multiplications that do not wait for each other; the upper half depends on every bit.
PROBE_LOG_DEVICE u32 check_of(const Slot& slot, u32 epoch) {
  const u64 sum = (slot.site | (u64)epoch << 32) * 0x9e3779b97f4a7c15ull + slot.block * 0xc2b2ae3d27d4eb4full +
                  (slot.thread | (u64)slot.meta << 32) * 0xd6e8feb86659fd93ull + slot.bits * 0xa0761d6478bd642full;
  return (u32)(sum >> 32);
}

PROBE_LOG_DEVICE bool within(const Range& range, u32 value) { return value - range.low <= range.span; }

PROBE_LOG_DEVICE bool selected(const Log& log) {
  if (!log.control) return false;
  const u32 thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  return within(log.thread[0], threadIdx.x) && within(log.thread[1], threadIdx.y) && within(log.thread[2], threadIdx.z) &&
         within(log.block[0], blockIdx.x) && within(log.block[1], blockIdx.y) && within(log.block[2], blockIdx.z) &&
         within(log.warp, thread / 32);
}

PROBE_LOG_DEVICE u32 put(char* to, u32 at, const char* text) {
  while (*text && at + 1 < SITE_TEXT) to[at++] = *text++;
  to[at] = 0;
  return at + 1 < SITE_TEXT ? at + 1 : at;
}

struct Where {
  u32 hash, line;
  const char *file, *tag, *expressions;
};

// The first to come by a site enters its names into the table; returns the entry's place, or SITES if all are taken.
PROBE_LOG_COLD u32 enter(u32 hash, u32 line, const char* file, const char* tag, const char* expressions) {
  const Log& log = current();
#pragma unroll 1
  for (u32 step = 0; step < SITES; ++step) {
    const u32 place = (hash + step) % SITES;
    const u32 there = swap_if_zero(&log.control->sites[place], hash);
    if (there == hash) return place;
    if (there) continue;
    Site* site = &log.site_table[place];
    put(site->text, put(site->text, put(site->text, 0, file), tag), expressions);
    site->line = line;
    site->hash = hash;
    return place;
  }
  return SITES;
}

PROBE_LOG_DEVICE u32 enter(const Where& where) {
  return enter(where.hash, where.line, where.file, where.tag, where.expressions);
}

// One value, into the slots from `at` on.
template <typename T>
PROBE_LOG_DEVICE void write(Slot* at, const Log& log, u32 hash, u32 meta, const T& value) {
  const Type type = Described<T>::type;
  const u32 bytes = Described<T>::elements * width(type);
  Slot slot;
  slot.site = hash;
  const u64 block = blockIdx.x | (u64)blockIdx.y << 31 | (u64)blockIdx.z << 47;
  slot.thread = threadIdx.x | threadIdx.y << 10 | threadIdx.z << 20 | type << 26;
  const char* from = (const char*)&value;
#pragma unroll
  for (u32 piece = 0; piece < pieces<T>(); ++piece) {
    const u32 size = bytes - piece * 8 < 8 ? bytes - piece * 8 : 8;
    slot.block = block | (u64)(piece + 1 == pieces<T>()) << 63;
    slot.bits = 0;
    memcpy(&slot.bits, from + piece * 8, size);
    slot.meta = meta | piece << 23 | (size / width(type) - 1) << 29;
    slot.check = check_of(slot, log.epoch);
    store(at + piece, slot);
  }
}

// Each value into the slots that its lane has of those from `first` on; returns how many found no room.
PROBE_LOG_DEVICE u32 write_all(const Claim&, u64, const Log&, u32, u32) { return 0; }

template <typename T, typename... Rest>
PROBE_LOG_DEVICE u32 write_all(const Claim& claim, u64 first, const Log& log, u32 hash, u32 meta, const T& value,
                               const Rest&... rest) {
  const u64 at = first + claim.rank * pieces<T>();
  const bool room = at + pieces<T>() <= log.capacity;
  if (room) write(log.slots + at, log, hash, meta, value);
  const u32 next = meta + (1u << 18);
  return !room + write_all(claim, first + claim.lanes * pieces<T>(), log, hash, next, rest...);
}

template <typename... Rest>
PROBE_LOG_DEVICE u32 write_all(const Claim& claim, u64 first, const Log& log, u32 hash, u32 meta, const Nothing&,
                               const Rest&... rest) {
  return write_all(claim, first, log, hash, meta + (1u << 18), rest...);
}

// Slots that the values need.
template <typename... T>
PROBE_LOG_SHARED constexpr u32 all_pieces() {
  const u32 each[] = {0u, pieces<T>()...};
  u32 sum = 0;
  for (u32 index = 0; index <= sizeof...(T); ++index) sum += each[index];
  return sum;
}

template <typename... T>
PROBE_LOG_SHARED constexpr bool all_known() {
  const bool each[] = {true, Described<T>::known...};
  bool all = true;
  for (u32 index = 0; index <= sizeof...(T); ++index) all = all && each[index];
  return all;
}

// One for each call of printf: what is missing in the output was overwritten in CUDA's ring buffer.
PROBE_LOG_DEVICE void count_printf() {
  if (Control* control = current().control) count(&control->printed);
}

PROBE_LOG_DEVICE bool wanted() { return selected(current()); }

template <typename... T>
PROBE_LOG_DEVICE void record(const Where& where, const T&... values) {
  static_assert(all_known<T...>(), "PROBE logs numbers, pointers, CUDA's vectors, and arrays of these");
  static_assert(sizeof...(T) >= 1 && sizeof...(T) <= MAX_VALUES, "PROBE takes 1 to 32 values");
  constexpr u32 needed = all_pieces<T...>();
  static_assert(needed <= MAX_PIECES, "PROBE: the values of one call are more than 512 bytes");
  const Log& log = current();
  const u32 launch = log.control->launch & 0x3ffff;
  if (log.control->sites[where.hash % SITES] != where.hash) enter(where);
  const Claim claimed = claim(&log.control->next, needed);
  const u32 lost = write_all(claimed, claimed.first, log, where.hash, launch, values...);
  if (lost) add(&log.control->lost, lost);
}

// What a watched assignment was made from; pointers, arrays and the user's own structures say nothing in a table.
template <typename T>
struct Told {
  static const bool value = Described<T>::known && Described<T>::type != POINTER;
};
template <typename T, decltype(sizeof(0)) N>
struct Told<T[N]> {
  static const bool value = false;
};
template <typename T, bool told>
struct Operand {
  static PROBE_LOG_DEVICE const T& of(const T& value) { return value; }
};
template <typename T>
struct Operand<T, false> {
  static PROBE_LOG_DEVICE Nothing of(const T&) { return Nothing(); }
};

// Exponent all ones: Inf or NaN.
PROBE_LOG_DEVICE bool odd(Type type, u64 bits) {
  const u64 exponent = type == F16 ? 0x7c00ull : type == BF16 ? 0x7f80ull : type == F32 ? 0x7f800000ull : 0x7ffull << 52;
  return (bits & exponent) == exponent;
}

// Out of line: it runs once a site, and a kernel may have hundreds of sites.
template <typename T, typename... Operands>
PROBE_LOG_COLD void report(Where where, T value, Operands... operands) {
  if (!wanted()) return;
  const u32 place = enter(where);
  if (place < SITES && !exchange(&current().control->fired[place], 1u)) record(where, value, operands...);
}

template <bool floating>
struct Watch {
  template <typename T, typename... Operands>
  static PROBE_LOG_DEVICE void value(const Where&, const T&, const Operands&...) {}
};

template <>
struct Watch<true> {
  template <typename T, typename... Operands>
  static PROBE_LOG_DEVICE void value(const Where& where, const T& value, const Operands&... operands) {
    constexpr Type type = Described<T>::type;
    bool found = false;
#pragma unroll
    for (u32 element = 0; element < Described<T>::elements; ++element) {
      u64 bits = 0;
      memcpy(&bits, (const char*)&value + element * width(type), width(type));
      found = found || odd(type, bits);
    }
    if (found) report(where, value, Operand<Operands, Told<Operands>::value>::of(operands)...);
  }
};

// The first value of a site that is Inf or NaN, with what it was made from; for other types than floating point nothing.
template <typename T, typename... Operands>
PROBE_LOG_DEVICE void watch(const Where& where, const T& value, const Operands&... operands) {
  typedef Described<T> Shape;
  Watch<Shape::known && Shape::type >= F16 && Shape::type <= F64>::value(where, value, operands...);
}

}  // namespace probe_log

// The names and the hash of a place are constants. The values are evaluated in chosen threads only.
#define PROBE_LOG_WHERE(file, line, tag, text) \
  ::probe_log::Where { ::probe_log::Constant<::probe_log::hash(file, line, tag, text)>::value, line, file, tag, text }
#define PROBE_LOG_VALUE(...) static_cast<typename ::probe_log::Kept<decltype((__VA_ARGS__))>::type>(__VA_ARGS__)
#define PROBE_LOG_AT(file, line, condition, tag, text, ...)                                             \
  do {                                                                                                  \
    if (::probe_log::wanted() && (condition))                                                           \
      ::probe_log::record(PROBE_LOG_WHERE(file, line, tag, text), __VA_ARGS__);                         \
  } while (0)
#define PROBE(tag, ...) PROBE_LOG_AT(__FILE__, __LINE__, true, tag, #__VA_ARGS__, __VA_ARGS__)
#define PROBE_IF(condition, tag, ...) PROBE_LOG_AT(__FILE__, __LINE__, condition, tag, #__VA_ARGS__, __VA_ARGS__)
#define PROBE_LOG_WATCH(file, line, text, ...) \
  ::probe_log::watch(PROBE_LOG_WHERE(file, line, "watch-nan", text), __VA_ARGS__)

// Counts calls of printf and marks each output's beginning. The format must be a literal.
#if defined(PROBE_COUNT_PRINTF) && !defined(PROBE_EMULATION)
#ifndef __CUDACC_RTC__
#include <cstdio>
#endif
#define printf(...) (::probe_log::count_printf(), printf("\x1e" __VA_ARGS__))
#endif

#endif
