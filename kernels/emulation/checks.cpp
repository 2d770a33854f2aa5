// What every access of a checked kernel is held against. The kernels are compiled with -fsanitize=thread, which puts a
// call before each access; the functions that it calls are these, not those of the ThreadSanitizer library.
//
// Bounds: the address must lie in a buffer, a shared variable, a stack, or the program's own data. Initialisation: a bit
// for each byte. Races: happens-before with vector clocks, over the bytes of shared memory.

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "machine.hpp"

extern "C" char __executable_start, end;

namespace probe_emulation {

namespace {

constexpr unsigned nobody = 0xffffu;

// ---- happens-before -----------------------------------------------------------------------------------------------
//
// A barrier of the whole block starts a new generation: everything before it is ordered. Within a generation each thread
// has a vector clock, made when it first meets a part of the block; clocks[t][u] is the time of u up to which t knows.

using Clock = std::vector<std::uint32_t>;

std::uint32_t generation = 1;
bool wide = false;  // a meeting of more than a warp in this generation: clocks then hold more than the own warp
std::vector<Clock> clocks;
std::vector<std::uint32_t> clock_generation;
std::unordered_map<std::uintptr_t, Clock> released_at;  // by atomic functions after a fence
struct Meeting {
    Clock clock;
    unsigned first, last;
    bool open = false;
};
std::vector<Meeting> meetings;

Clock& clock_of(const Thread& thread) {
    const unsigned count = (unsigned)machine.threads.size();
    if (clocks.size() != count) {
        clocks.assign(count, Clock());
        clock_generation.assign(count, 0);
    }
    Clock& clock = clocks[thread.rank];
    if (clock_generation[thread.rank] != generation) {
        clock.assign(count, 0);
        clock[thread.rank] = 1;
        clock_generation[thread.rank] = generation;
    }
    return clock;
}

void columns(const Thread& thread, unsigned& first, unsigned& last) {
    first = wide ? 0 : thread.rank / warp_size * warp_size;
    last = wide ? (unsigned)machine.threads.size() : std::min<unsigned>(first + warp_size, (unsigned)machine.threads.size());
}

void join(Clock& into, const Clock& from, unsigned first, unsigned last) {
    for (unsigned i = first; i < last; ++i) into[i] = std::max(into[i], from[i]);
}

std::uint32_t now(const Thread& thread) {
    return clock_generation.size() > thread.rank && clock_generation[thread.rank] == generation ? clocks[thread.rank][thread.rank] : 1;
}

bool knows(const Thread& thread, unsigned other, std::uint32_t time) {
    if (other == thread.rank) return true;
    return clock_generation.size() > thread.rank && clock_generation[thread.rank] == generation && clocks[thread.rank][other] >= time;
}

// ---- shadows ------------------------------------------------------------------------------------------------------

struct Access {  // the last of its sort to a byte; `who` is a thread (shared memory) or a block (global)
    std::uint32_t generation = 0, time = 0, pc = 0;
    std::uint32_t who = nobody;
    bool atomic = false;
};
struct Cell {
    Access write, read, other_read;  // the two reads are of different threads
};

Cell* shared_cells;
std::uint32_t* shared_written;  // the serial of the block that wrote a byte
enum Valid : unsigned char { nothing, variable, guard };
Valid* shared_valid;            // what lies at a byte
struct Copying {
    std::uint32_t pc, who;      // a copy in the background that the thread has not waited for; pc 0: none
};
Copying* shared_copying;
std::vector<Cell*> global_cells;

template <class T>
T* shadow(std::size_t count) {  // zeros that cost nothing until they are touched
    void* got = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) report_and_end({.kind = "no-memory"});
    return (T*)got;
}

void make_shadows() {
    const std::size_t bytes = machine.locals_end - machine.locals;
    shared_cells = shadow<Cell>(bytes);
    shared_written = shadow<std::uint32_t>(bytes);
    shared_valid = shadow<Valid>(bytes);
    shared_copying = shadow<Copying>(bytes);
    for (const Region& region : machine.statics) memset(shared_valid + region.begin, region.guard ? guard : variable, region.bytes);
    if (machine.checks.grid)
        for (const Buffer& buffer : machine.buffers) global_cells.push_back(shadow<Cell>(buffer.end - buffer.begin));
}

// ---- shared memory ------------------------------------------------------------------------------------------------

bool ordered(const Access& before, const Thread& thread) {
    return before.generation != generation || knows(thread, before.who, before.time);
}

bool conflict(const Access& before, bool before_writes, const At& at, const Thread& thread, long offset) {
    if (before.generation != generation || (before.atomic && at.atomic) || ordered(before, thread)) return false;
    report({.kind = "race", .pc = at.pc, .other_pc = before.pc, .address = at.address, .size = at.size, .write = at.write,
            .space = "shared", .offset = offset, .other_thread = (int)before.who,
            .text = before_writes ? (at.write ? "Write,Write" : "Write,Read") : "Read,Write"});
    return true;
}

void note(Cell& cell, const At& at, const Thread& thread) {
    const Access access{generation, now(thread), (std::uint32_t)at.pc, thread.rank, at.atomic};
    if (at.write) {
        cell.write = access;
        return;
    }
    if (cell.read.generation == generation && cell.read.who != thread.rank && !ordered(cell.read, thread)) cell.other_read = cell.read;
    cell.read = access;
}

// A read that a copy in the background may come before or after, whatever barrier stands between: its thread has not waited.
bool overtakes_copy(const At& at, std::uintptr_t offset) {
    for (unsigned i = 0; at.reads && i < at.size; ++i)
        if (const Copying& copying = shared_copying[offset + i]; copying.pc) {
            report({.kind = "copying", .pc = at.pc, .other_pc = copying.pc, .address = at.address, .size = at.size, .write = 0,
                    .space = "shared", .offset = (long)(offset + i), .other_thread = (int)copying.who});
            return true;
        }
    return false;
}

void race_shared(const At& at, std::uintptr_t offset) {
    if (overtakes_copy(at, offset)) return;
    const Thread& thread = *machine.current;
    for (unsigned i = 0; i < at.size; ++i) {
        const Cell& cell = shared_cells[offset + i];
        if (conflict(cell.write, true, at, thread, (long)(offset + i))) break;
        if (at.write && (conflict(cell.read, false, at, thread, (long)(offset + i)) ||
                         conflict(cell.other_read, false, at, thread, (long)(offset + i)))) break;
    }
    for (unsigned i = 0; i < at.size; ++i) note(shared_cells[offset + i], at, thread);
}

bool shared_bounds(const At& at, std::uintptr_t offset) {
    const std::uintptr_t dynamic = machine.dynamic - machine.locals;
    if (offset >= dynamic && offset + at.size <= dynamic + machine.dynamic_bytes) return true;
    bool inside = offset + at.size <= machine.locals_end - machine.locals;
    for (unsigned i = 0; inside && i < at.size; ++i) inside = shared_valid[offset + i] == variable;
    if (inside) return true;
    char text[80] = "";
    if (offset >= dynamic) snprintf(text, sizeof text, "the launch has %u bytes of it", machine.dynamic_bytes);
    report({.kind = "access", .pc = at.pc, .address = at.address, .size = at.size, .write = at.write, .space = "shared",
            .offset = (long)offset, .text = text});
    return false;
}

void init_shared(const At& at, std::uintptr_t offset) {
    if (at.reads)
        for (unsigned i = 0; i < at.size; ++i)
            if (shared_written[offset + i] != machine.block_serial) {
                report({.kind = "uninitialised", .pc = at.pc, .address = at.address, .size = at.size, .write = 0,
                        .space = "shared", .offset = (long)(offset + i)});
                break;
            }
    if (at.write) std::fill_n(shared_written + offset, at.size, machine.block_serial);
}

void misaligned(const At& at, const char* space, int buffer, long offset) {
    report({.kind = "access", .pc = at.pc, .address = at.address, .size = at.size, .write = at.write, .space = space,
            .buffer = buffer, .offset = offset, .text = "the address is misaligned"});
}

bool is_misaligned(const At& at) { return at.aligned && (at.size & (at.size - 1)) == 0 && at.address & (at.size - 1); }

void shared_access(const At& at) {
    const std::uintptr_t offset = at.address - machine.locals;
    if (shared_valid[offset] == guard) return;
    const bool fits = shared_bounds(at, offset);
    if (machine.checks.memory && fits && is_misaligned(at)) misaligned(at, "shared", -1, (long)offset);
    if (!fits) return;
    if (machine.checks.init) init_shared(at, offset);
    if (machine.checks.race) race_shared(at, offset);
}

bool mark_copy(const At& at, Copying copying) {  // false outside of shared memory
    const std::uintptr_t offset = at.address - machine.locals;
    if (offset + at.size > machine.locals_end - machine.locals || offset + at.size < offset) return false;
    std::fill_n(shared_copying + offset, at.size, copying);
    return true;
}

// ---- global memory ------------------------------------------------------------------------------------------------

int nearest(std::uintptr_t address) {  // the buffer that holds the address, or whose end is closest
    static int last = 0;
    const auto& buffers = machine.buffers;
    if (buffers.empty()) return -1;
    if ((std::size_t)last < buffers.size() && address >= buffers[(std::size_t)last].begin && address < buffers[(std::size_t)last].end) return last;
    const auto after = std::upper_bound(buffers.begin(), buffers.end(), address, [](std::uintptr_t a, const Buffer& b) { return a < b.begin; });
    int found = (int)(after - buffers.begin()) - 1;
    if (found < 0) return 0;
    const std::uintptr_t end = buffers[(std::size_t)found].end;
    if (address >= end && after != buffers.end() && after->begin - address < address - end) ++found;
    return last = found;
}

void init_global(const At& at, int index) {
    Buffer& buffer = machine.buffers[(std::size_t)index];
    if (!buffer.written) return;
    const std::size_t offset = at.address - buffer.begin;
    if (at.reads)
        for (unsigned i = 0; i < at.size; ++i)
            if (!buffer.written[offset + i]) {
                report({.kind = "uninitialised", .pc = at.pc, .address = at.address, .size = at.size, .write = 0,
                        .space = "global", .buffer = index, .offset = (long)(offset + i)});
                break;
            }
    if (at.write)
        memset(buffer.written + offset, 1, at.size);
}

// Blocks are never ordered within a launch; atomic accesses do not race with each other.
void race_global(const At& at, int index) {
    const std::size_t offset = at.address - machine.buffers[(std::size_t)index].begin;
    const std::uint32_t launch = (std::uint32_t)machine.launch + 1;
    const std::uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    for (unsigned i = 0; i < at.size; ++i) {
        Cell& cell = global_cells[(std::size_t)index][offset + i];
        for (const Access* before : {&cell.write, &cell.read, &cell.other_read}) {
            const bool writes = before == &cell.write;
            if (before->generation != launch || before->who == block || (!writes && !at.write) || (before->atomic && at.atomic)) continue;
            report({.kind = "race", .pc = at.pc, .other_pc = before->pc, .address = at.address, .size = at.size, .write = at.write,
                    .space = "global", .buffer = index, .offset = (long)(offset + i), .other_block = (long)before->who,
                    .text = writes ? (at.write ? "Write,Write" : "Write,Read") : "Read,Write"});
            i = at.size;
            break;
        }
    }
    for (unsigned i = 0; i < at.size; ++i) {
        Cell& cell = global_cells[(std::size_t)index][offset + i];
        const Access access{launch, 0, (std::uint32_t)at.pc, block, at.atomic};
        if (at.write) cell.write = access;
        else {
            if (cell.read.generation == launch && cell.read.who != block) cell.other_read = cell.read;
            cell.read = access;
        }
    }
}

void global_access(const At& at) {
    const int index = nearest(at.address);
    const bool known = index >= 0;
    const Buffer* buffer = known ? &machine.buffers[(std::size_t)index] : nullptr;
    const long offset = known ? (long)(at.address - buffer->begin) : 0;
    if (!known || at.address < buffer->begin || at.address + at.size > buffer->end) {
        if (machine.checks.memory)
            report({.kind = "access", .pc = at.pc, .address = at.address, .size = at.size, .write = at.write, .space = "global",
                    .buffer = index, .offset = offset});
        return;
    }
    if (machine.checks.memory && is_misaligned(at)) misaligned(at, "global", index, offset);
    if (machine.checks.init) init_global(at, index);
    if (machine.checks.grid) race_global(at, index);
}

}  // namespace

void misaligned(const At& at) {
    if (at.address - machine.locals < machine.locals_end - machine.locals)
        return misaligned(at, "shared", -1, (long)(at.address - machine.locals));
    const bool in_arena = at.address - machine.arena < machine.arena_end - machine.arena;
    const int index = in_arena ? nearest(at.address) : -1;
    misaligned(at, "global", index, index < 0 ? 0 : (long)(at.address - machine.buffers[(std::size_t)index].begin));
}

// ---- the one door -------------------------------------------------------------------------------------------------

void look(const At& at) {
    Thread* thread = machine.current;
    if (!thread) return;  // the runtime's own start
    if (at.address - machine.stacks < machine.stacks_end - machine.stacks) {
        if (machine.checks.local) look_local(at);
        return;
    }
    if (++thread->steps > machine.step_limit) report_and_end({.kind = "steps", .pc = at.pc, .number = machine.step_limit});
    if (at.address - machine.arena < machine.arena_end - machine.arena) return global_access(at);
    if (at.address - machine.locals < machine.locals_end - machine.locals) return shared_access(at);
    if (at.address - (std::uintptr_t)&__executable_start < (std::uintptr_t)(&end - &__executable_start)) {
        if (machine.checks.local) look_variable(at);
        return;
    }
    if (at.address < 65536 || at.address >> 47)
        report_and_end({.kind = "access", .pc = at.pc, .address = at.address, .size = at.size, .write = at.write,
                        .space = "global", .text = at.address < 65536 ? "a null pointer, or near one" : "no address at all"});
    const std::uintptr_t margin = 1u << 30;  // far beyond the buffers
    if (at.address - (machine.arena - margin) < machine.arena_end - machine.arena + 2 * margin)
        report_and_end({.kind = "access", .pc = at.pc, .address = at.address, .size = at.size, .write = at.write, .space = "global",
                        .buffer = nearest(at.address), .offset = (long)(at.address - machine.buffers[(std::size_t)nearest(at.address)].begin)});
}

__attribute__((noinline)) void atomic_access(const void* address, unsigned size, bool reads) {
    if (!shared_cells) return;
    const At at{(std::uintptr_t)address, size, true, true, true, (Pc)__builtin_return_address(0), reads};
    look(at);
    if (!machine.checks.race || !machine.current) return;
    Thread& thread = *machine.current;
    unsigned first, last;
    if (const auto found = released_at.find(at.address); found != released_at.end()) {
        wide = true;
        columns(thread, first, last);
        join(clock_of(thread), found->second, first, last);
    }
    if (!thread.fenced) return;
    wide = true;
    columns(thread, first, last);
    Clock& at_address = released_at[at.address];
    at_address.resize(machine.threads.size());
    join(at_address, clock_of(thread), first, last);
    ++clock_of(thread)[thread.rank];
}

__attribute__((noinline)) void touch(const void* address, std::size_t size, bool write) {
    if (size) look({(std::uintptr_t)address, (unsigned)size, write, false, false, (Pc)__builtin_return_address(0)});
}

__attribute__((noinline)) void require_alignment(const void* address, unsigned bytes) {
    if (machine.checks.memory && (std::uintptr_t)address % bytes)
        misaligned({(std::uintptr_t)address, bytes, false, false, true, (Pc)__builtin_return_address(0)});
}

void fence() { machine.current->fenced = true; }

namespace told {

void block_begins() {
    const Checks& checks = machine.checks;
    if (!shared_cells && (checks.memory || checks.race || checks.init || checks.grid)) make_shadows();
    ++generation;
    wide = false;
    released_at.clear();
    for (Meeting& meeting : meetings) meeting.open = false;
}

void all_met() {
    ++generation;
    wide = false;
    released_at.clear();
    for (Thread& thread : machine.threads) thread.fenced = false;
}

int new_meeting() {
    std::size_t at = 0;
    while (at < meetings.size() && meetings[at].open) ++at;
    if (at == meetings.size()) meetings.emplace_back();
    meetings[at].clock.assign(machine.threads.size(), 0);
    meetings[at].open = true;
    return (int)at;
}

void releases(Thread& thread, int meeting) {
    if (thread.state != State::at_warp && thread.operation != 1) wide = true;
    unsigned first, last;
    columns(thread, first, last);
    Clock& clock = clock_of(thread);
    join(meetings[(std::size_t)meeting].clock, clock, first, last);
    ++clock[thread.rank];
}

void acquires(Thread& thread, int meeting) {
    unsigned first, last;
    columns(thread, first, last);
    join(clock_of(thread), meetings[(std::size_t)meeting].clock, first, last);
    thread.fenced = false;
}

// The bytes may be written at any time from now on to the end of the wait: a race with either end is one.
void copy_begins(const void* to, unsigned bytes, const void* from, unsigned given, Pc pc) {
    if (!shared_cells) return;
    if (given) look({(std::uintptr_t)from, given, false, false, false, pc});
    const At at{(std::uintptr_t)to, bytes, true, false, false, pc};
    look(at);
    mark_copy(at, {(std::uint32_t)pc, machine.current->rank});
}

void copy_ends(const void* to, unsigned bytes, Pc pc) {
    if (!shared_cells) return;
    const At at{(std::uintptr_t)to, bytes, true, false, false, pc};
    if (mark_copy(at, {}) && machine.checks.race) race_shared(at, at.address - machine.locals);
}

void copy_is_forgotten(const void* to, unsigned bytes) {
    if (shared_cells) mark_copy({(std::uintptr_t)to, bytes, true, false, false, 0}, {});
}

void ends(int meeting) { meetings[(std::size_t)meeting].open = false; }

}  // namespace told

}  // namespace probe_emulation

using probe_emulation::look;

#define PROBE_HERE (probe_emulation::Pc) __builtin_return_address(0)
#define PROBE_HOOKS(bytes)                                                                                                       \
    extern "C" void __tsan_read##bytes(void* p) { look({(std::uintptr_t)p, bytes, false, false, true, PROBE_HERE}); }            \
    extern "C" void __tsan_write##bytes(void* p) { look({(std::uintptr_t)p, bytes, true, false, true, PROBE_HERE}); }            \
    extern "C" void __tsan_volatile_read##bytes(void* p) { look({(std::uintptr_t)p, bytes, false, false, true, PROBE_HERE}); }   \
    extern "C" void __tsan_volatile_write##bytes(void* p) { look({(std::uintptr_t)p, bytes, true, false, true, PROBE_HERE}); }   \
    extern "C" void __tsan_unaligned_read##bytes(void* p) { look({(std::uintptr_t)p, bytes, false, false, false, PROBE_HERE}); } \
    extern "C" void __tsan_unaligned_write##bytes(void* p) { look({(std::uintptr_t)p, bytes, true, false, false, PROBE_HERE}); }
PROBE_HOOKS(1)
PROBE_HOOKS(2)
PROBE_HOOKS(4)
PROBE_HOOKS(8)
PROBE_HOOKS(16)
extern "C" void __tsan_read_range(void* p, long bytes) { look({(std::uintptr_t)p, (unsigned)bytes, false, false, false, PROBE_HERE}); }
extern "C" void __tsan_write_range(void* p, long bytes) { look({(std::uintptr_t)p, (unsigned)bytes, true, false, false, PROBE_HERE}); }

// The compiler's own atomic operations (std::atomic, cuda::atomic): one step, as no other thread runs meanwhile.
#define PROBE_FETCH(bits, T, name, expression)                                  \
    extern "C" T __tsan_atomic##bits##_##name(volatile T* p, T value, int) {    \
        probe_emulation::atomic_access((const void*)p, sizeof(T));              \
        const T old = *p;                                                       \
        *p = (T)(expression);                                                   \
        return old;                                                             \
    }
#define PROBE_ATOMICS(bits, T)                                                                                     \
    extern "C" T __tsan_atomic##bits##_load(const volatile T* p, int) {                                            \
        probe_emulation::atomic_access((const void*)p, sizeof(T));                                                 \
        probe_emulation::yield();                                                                                  \
        return *p;                                                                                                 \
    }                                                                                                              \
    extern "C" void __tsan_atomic##bits##_store(volatile T* p, T value, int) {                                     \
        probe_emulation::atomic_access((const void*)p, sizeof(T));                                                 \
        *p = value;                                                                                                \
    }                                                                                                              \
    PROBE_COMPARE(bits, T, strong)                                                                                 \
    PROBE_COMPARE(bits, T, weak)                                                                                   \
    PROBE_FETCH(bits, T, exchange, value)                                                                          \
    PROBE_FETCH(bits, T, fetch_add, old + value)                                                                   \
    PROBE_FETCH(bits, T, fetch_sub, old - value)                                                                   \
    PROBE_FETCH(bits, T, fetch_and, old & value)                                                                   \
    PROBE_FETCH(bits, T, fetch_or, old | value)                                                                    \
    PROBE_FETCH(bits, T, fetch_xor, old ^ value)
#define PROBE_COMPARE(bits, T, how)                                                                                \
    extern "C" int __tsan_atomic##bits##_compare_exchange_##how(volatile T* p, T* expected, T value, int, int) {   \
        probe_emulation::atomic_access((const void*)p, sizeof(T));                                                 \
        const T old = *p;                                                                                          \
        const bool same = old == *expected;                                                                        \
        if (same) *p = value;                                                                                      \
        else *expected = old, probe_emulation::yield();                                                            \
        return same;                                                                                               \
    }
PROBE_ATOMICS(8, unsigned char)
PROBE_ATOMICS(16, unsigned short)
PROBE_ATOMICS(32, unsigned)
PROBE_ATOMICS(64, unsigned long)
extern "C" void __tsan_atomic_thread_fence(int) { probe_emulation::fence(); }
extern "C" void __tsan_atomic_signal_fence(int) {}

extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
