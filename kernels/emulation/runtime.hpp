// What a kernel under emulation asks of the runtime: threads are fibers, one block at a time, and every function here
// that waits hands the processor to another thread of the block.
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return uint3{x, y, z}; }
};

// Set before each thread goes on; never const, or the compiler keeps the values of another thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace probe_emulation {

constexpr unsigned warp_size = 32;
constexpr unsigned largest_copy = 16;    // bytes that one cp.async brings
constexpr unsigned largest_value = 128;  // bytes that one lane can hand over in an exchange

enum class Reduction { none, count, all, any };

// A block-wide meeting; `id` and `threads` as in PTX `bar.sync`; 0 threads means the whole block. What is returned is
// the reduction of `predicate` over the threads that met. `line` also keeps the compiler from merging two calls.
int barrier(unsigned id, unsigned threads, Reduction reduction = Reduction::none, int predicate = 0, unsigned line = 0);
void barrier_arrive(unsigned id, unsigned threads);
void grid_barrier();  // of all blocks of the grid

// A meeting of the lanes in `mask`; each hands over `size` bytes, and all read all of them: lane l's stand at l * size
// of what is returned, until the caller's next meeting. `participants` tells which lanes came. `operation` must be the
// same in all lanes. Only `orders_memory` makes earlier accesses visible (as __syncwarp does, and a shuffle does not).
const unsigned char* meet(
    unsigned mask, unsigned operation, const void* value, unsigned size, unsigned* participants, bool orders_memory);

unsigned active_mask();     // the lanes that stand at the same place
unsigned lane();            // of the caller, 0..31
unsigned warp();            // of the caller in its block
unsigned thread_rank();     // of the caller in its block, x fastest
unsigned dynamic_shared_bytes();
void yield();               // nothing was achieved: let the others run
void bad_shuffle(unsigned source);
void touch(const void* address, std::size_t size, bool write);  // what the compiler does not see as an access
void atomic_access(const void* address, unsigned size, bool reads = true);
void copy_unseen(void* to, const void* from, unsigned size);  // by no access of the kernel's: the part of an atomic function
void copy_later(void* to, const void* from, unsigned bytes, unsigned given);  // cp.async: behind `given` bytes come zeros
void commit_copies();                      // those since the last commit are a group
void wait_for_copies(std::size_t prior);   // for all groups but the last so many
void wait_for_all_copies();
void fence();
void require_alignment(const void* address, unsigned bytes);
void bad_leading_dimension(unsigned bytes);       // of a matrix that wmma loads or stores
unsigned shared_window(const void* address);      // what __cvta_generic_to_shared gives: 32 bits, as aligned as the address
unsigned char* from_shared_window(unsigned at);
[[noreturn]] void trap();
[[noreturn]] void fail_assertion(const char* text, const char* file, unsigned line);
[[noreturn]] void refuse(const char* what);  // something that is not emulated: the run ends, and says so
int print(const char* format, ...) __attribute__((format(printf, 1, 2)));

unsigned char* warpgroup_buffer(unsigned bytes);  // shared by the 128 threads of the caller's warpgroup

enum Kind : unsigned char { integer = 'i', real = 'f', pointer = 'p', other = 's' };

struct Parameter {
    std::size_t size;
    Kind kind;
};

struct Entry {
    const char* name;
    void (*invoke)(void* const* arguments);
    const Parameter* parameters;
    unsigned count;
};

void enlist(const Entry& entry);

}  // namespace probe_emulation
