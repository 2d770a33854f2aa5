// The runtime's own state: the threads of the block that runs, and what the checks are told.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime.hpp"

namespace probe_emulation {

using Pc = std::uintptr_t;

enum class State : std::uint8_t { ready, at_barrier, at_warp, converging, done };

struct Thread {
    void* stack_pointer;
    unsigned char* stack_top;
    uint3 index;
    unsigned rank;
    State state;
    bool orders_memory;
    bool fenced;  // has called a fence since it last met others
    int result;
    unsigned mask, operation, size, participants;
    unsigned barrier, line;
    int record;  // of the exchange that it may still read; -1: none
    const void* value;
    Pc pc;  // of the call that it waits in
    std::uint64_t steps;
};

constexpr std::size_t stack_bytes = 256 * 1024, page = 4096;  // of each thread, and the guard page below

struct Buffer {
    std::uintptr_t begin, end;
    unsigned char* written;  // a byte for each byte; null where all of them count as written
};

struct Region {  // of shared memory, relative to the thread-local block
    std::uintptr_t begin, bytes;
    bool guard;  // the compiler's own: whether a variable beside it has been initialised; no variable of CUDA's is, by it
};

struct Checks {
    bool memory, race, init, grid;
    bool local;  // the stacks and the program's own variables
};

struct Machine {
    std::vector<Thread> threads;
    Thread* current;
    unsigned live;
    std::vector<Buffer> buffers;
    std::uintptr_t arena, arena_end, stacks, stacks_end;
    std::uintptr_t locals, locals_end;  // the thread-local block: all shared variables
    std::vector<Region> statics;
    std::uintptr_t dynamic;
    unsigned dynamic_bytes;
    Checks checks;
    std::uint64_t step_limit;
    int launch;
    std::uint32_t block_serial;
};
extern Machine machine;

struct Finding {
    const char* kind;
    Pc pc;
    Pc other_pc = 0;
    std::uintptr_t address = 0;
    unsigned size = 0;
    int write = -1;  // 1 a write, 0 a read, -1 neither
    const char* space = "";
    int buffer = -1;
    long offset = 0;
    int other_thread = -1;
    long other_block = -1;
    const char* text = "";
    unsigned long number = 0;
    bool warning = false;
};

void report(const Finding& finding);
[[noreturn]] void report_and_end(const Finding& finding);
[[noreturn]] void end_process(int status);

struct At {  // an access
    std::uintptr_t address;
    unsigned size;
    bool write, atomic, aligned;
    Pc pc;
    bool reads = !write || atomic;
};
void look(const At& at);            // checks.cpp: every access of a kernel
void look_local(const At& at);      // locals.cpp: one to a stack
void look_variable(const At& at);   // locals.cpp: one to the program's own data
void misaligned(const At& at);      // checks.cpp
void forget_copies();               // copies.cpp: as a block begins
void shadow_stacks(std::uintptr_t begin, std::uintptr_t end);

// Told to the checks by the scheduler.
namespace told {
void block_begins();
void all_met();                               // the whole block
void releases(Thread& thread, int meeting);  // thread arrives at a meeting of a part of the block
void acquires(Thread& thread, int meeting);
void ends(int meeting);
int new_meeting();
void copy_begins(const void* to, unsigned bytes, const void* from, unsigned given, Pc pc);
void copy_ends(const void* to, unsigned bytes, Pc pc);
void copy_is_forgotten(const void* to, unsigned bytes);
}  // namespace told

}  // namespace probe_emulation
