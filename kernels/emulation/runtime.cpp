// Runs launches on the CPU: every thread of a block is a fiber, and blocks run one after the other in their order.
//
// kernel PLAN EVENTS ARENA [MARKS]: the plan is text (see `harness/emulation/run.py`), events are JSON lines, the arena
// holds the buffers; of those that start undefined, the marks say which bytes have been written, also by earlier programs.
// Exit status: 0 all launches ended, 3 one was ended by a finding, 4 the plan does not fit the kernels.

#include "runtime.hpp"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "machine.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace probe_emulation {

Machine machine;
thread_local char anchor;  // its address less its offset is where the shared variables begin

namespace {

constexpr std::uintptr_t wanted_arena = 0x200000000000;
constexpr unsigned char guard_byte = 0xcb;
constexpr std::uint64_t most_spins = 2'000'000;  // yields of a block in which nothing else happened
constexpr unsigned most_findings = 1000;         // distinct ones in a process

// ---- events -------------------------------------------------------------------------------------------------------

int events = -1;
std::string pending;

void flush() {
    std::size_t sent = 0;
    while (sent < pending.size()) {
        const ssize_t n = write(events, pending.data() + sent, pending.size() - sent);
        if (n <= 0 && errno != EINTR) break;
        if (n > 0) sent += (std::size_t)n;
    }
    pending.clear();
}

void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
void say(const char* format, ...) {
    char line[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    pending += line;
    if (pending.size() > 1 << 16) flush();
}

std::string quoted(const char* text, std::size_t length) {
    std::string out = "\"";
    for (std::size_t i = 0; i < length; ++i) {
        const unsigned char c = (unsigned char)text[i];
        char code[8];
        if (c == '"' || c == '\\') out += '\\', out += (char)c;
        else if (c < 0x20 || c >= 0x7f) snprintf(code, sizeof code, "\\u%04x", c), out += code;  // as Latin-1
        else out += (char)c;
    }
    return out + '"';
}

std::string place_of(const Thread* thread) {
    char text[160];
    if (!thread) return "";
    snprintf(text, sizeof text, ",\"block\":[%u,%u,%u],\"thread\":[%u,%u,%u]", blockIdx.x, blockIdx.y, blockIdx.z,
             thread->index.x, thread->index.y, thread->index.z);
    return text;
}

struct Seen {
    unsigned id;
    unsigned long count;
};
std::map<std::tuple<std::string, Pc, Pc, int>, Seen> seen;

void tell_counts() {
    for (const auto& [key, one] : seen)
        if (one.count > 1) say("{\"event\":\"count\",\"id\":%u,\"count\":%lu}\n", one.id, one.count);
    seen.clear();
}

}  // namespace

void report(const Finding& f) {
    static unsigned next = 0;
    auto [at, fresh] = seen.try_emplace({f.kind, f.pc, f.other_pc, f.buffer}, Seen{next, 0});
    ++at->second.count;
    if (!fresh || next >= most_findings) return;
    ++next;
    say("{\"event\":\"finding\",\"id\":%u,\"launch\":%d,\"kind\":\"%s\",\"pc\":%lu,\"other_pc\":%lu", at->second.id,
        machine.launch, f.kind, (unsigned long)f.pc, (unsigned long)f.other_pc);
    pending += place_of(machine.current);
    say(",\"address\":%lu,\"size\":%u,\"write\":%d,\"space\":\"%s\",\"buffer\":%d,\"offset\":%ld,\"number\":%lu,\"warning\":%d",
        (unsigned long)f.address, f.size, f.write, f.space, f.buffer, f.offset, f.number, f.warning);
    if (f.other_thread >= 0) {
        const uint3 i = machine.threads[(unsigned)f.other_thread].index;
        say(",\"other_thread\":[%u,%u,%u]", i.x, i.y, i.z);
    }
    if (f.other_block >= 0) say(",\"other_block\":%ld", f.other_block);
    pending += ",\"text\":" + quoted(f.text, strlen(f.text)) + "}\n";
    flush();  // whatever happens next, this is known
}

void end_process(int status) {
    tell_counts();
    flush();
    _exit(status);
}

void report_and_end(const Finding& f) {
    report(f);
    end_process(3);
}

int print(const char* format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const std::size_t kept = length < 0 ? 0 : std::min((std::size_t)length, sizeof text - 1);
    say("{\"event\":\"print\",\"launch\":%d", machine.launch);
    pending += place_of(machine.current) + ",\"text\":" + quoted(text, kept) + "}\n";
    return length;
}

// ---- fibers -------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void probe_switch(void** save, void* load);
asm(R"(
.text
.type probe_switch, @function
probe_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size probe_switch, .-probe_switch
)");
static void* fresh_stack(unsigned char* top, void (*start)()) {
    void** slot = (void**)top;
    *--slot = nullptr;  // no return address: `start` never returns
    *--slot = (void*)start;
    for (int i = 0; i < 6; ++i) *--slot = nullptr;
    return slot;
}
#elif defined(__aarch64__)
extern "C" void probe_switch(void** save, void* load);
asm(R"(
.text
.type probe_switch, %function
probe_switch:
    sub sp, sp, #176
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #176
    ret
.size probe_switch, .-probe_switch
)");
static void* fresh_stack(unsigned char* top, void (*start)()) {
    void** slot = (void**)(top - 176);
    memset(slot, 0, 176);
    slot[11] = (void*)start;  // x30
    return slot;
}
#else
#error "the emulation switches stacks on x86-64 and aarch64"
#endif

namespace {

void* scheduler_stack;
std::vector<unsigned> queue;  // of ready threads, a ring
std::size_t head, queued;
std::uint64_t spins;
const Entry* entry;
std::vector<void*> arguments;

struct Record {  // of one meeting of a warp: what each lane handed over
    unsigned readers = 0;
    unsigned char data[warp_size * largest_value];
};

struct Warp {
    unsigned first, present, live, waiting, converging;
    std::vector<Record> records = std::vector<Record>(warp_size + 1);  // each lane holds one at most
};
std::vector<Warp> warps;

struct Barrier {
    unsigned arrived = 0, count = 0;
    bool all = true, any = false;
    int meeting = -1;
    std::vector<unsigned> waiting;
};
constexpr unsigned barriers_of_block = 16, barriers_of_groups = 8;
Barrier barriers[barriers_of_block + barriers_of_groups];

void make_ready(Thread& thread) {
    thread.state = State::ready;
    queue[(head + queued++) % queue.size()] = thread.rank;
}

void leave_to_scheduler() { probe_switch(&machine.current->stack_pointer, scheduler_stack); }

void wait_as(State state, Pc pc) {
    Thread& thread = *machine.current;
    thread.state = state;
    thread.pc = pc;
    leave_to_scheduler();
}

void count_step(Pc pc) {
    Thread& thread = *machine.current;
    if (++thread.steps > machine.step_limit)
        report_and_end({.kind = "steps", .pc = pc, .number = machine.step_limit});
}

Warp& warp_of(const Thread& thread) { return warps[thread.rank / warp_size]; }

void let_go(Thread& thread) {
    if (thread.record >= 0) --warp_of(thread).records[(unsigned)thread.record].readers;
    thread.record = -1;
}

// If all that are awaited are here for the same: hands the values over. The caller is not put into the queue.
bool complete(Warp& warp, const Thread& like, const Thread* caller) {
    const unsigned wanted = like.mask & warp.live;
    if ((warp.waiting & wanted) != wanted) return false;
    Thread* lanes = &machine.threads[warp.first];
    for (unsigned left = wanted; left; left &= left - 1) {
        const Thread& other = lanes[__builtin_ctz(left)];
        if (other.operation != like.operation || other.mask != like.mask || other.size != like.size) return false;
    }
    int free = -1;
    if (like.size) {
        free = 0;
        while (warp.records[(unsigned)free].readers) ++free;
        Record& record = warp.records[(unsigned)free];
        record.readers = (unsigned)__builtin_popcount(wanted);
        if (wanted != 0xffffffffu) memset(record.data, 0xff, warp_size * like.size);
        for (unsigned left = wanted; left; left &= left - 1) {
            const unsigned lane = (unsigned)__builtin_ctz(left);
            memcpy(record.data + lane * like.size, lanes[lane].value, like.size);
        }
    }
    const int meeting = like.orders_memory && machine.checks.race ? told::new_meeting() : -1;
    for (unsigned left = wanted; meeting >= 0 && left; left &= left - 1) told::releases(lanes[__builtin_ctz(left)], meeting);
    for (unsigned left = wanted; left; left &= left - 1) {
        Thread& other = lanes[__builtin_ctz(left)];
        let_go(other);
        other.record = free;
        other.participants = wanted;
        if (meeting >= 0) told::acquires(other, meeting);
        if (&other != caller) make_ready(other);
    }
    if (meeting >= 0) told::ends(meeting);
    warp.waiting &= ~wanted;
    spins = 0;
    return true;
}

void open_barrier(Barrier& barrier, const Thread* caller, bool orders) {
    spins = 0;
    const bool whole = barrier.waiting.size() + (caller != nullptr) >= machine.live;
    if (machine.checks.race && orders) {
        if (whole) told::all_met();
        else if (barrier.meeting >= 0)
            for (const unsigned rank : barrier.waiting) told::acquires(machine.threads[rank], barrier.meeting);
        if (caller && !whole && barrier.meeting >= 0) told::acquires(machine.threads[caller->rank], barrier.meeting);
    }
    for (const unsigned rank : barrier.waiting) make_ready(machine.threads[rank]);
    if (barrier.meeting >= 0) told::ends(barrier.meeting);
}

void result_for(Thread& thread, const Barrier& barrier, Reduction reduction) {
    thread.result = reduction == Reduction::count ? (int)barrier.count
                    : reduction == Reduction::all ? barrier.all
                    : reduction == Reduction::any ? barrier.any : 0;
}

void arrive(Barrier& barrier, int predicate, bool orders) {
    ++barrier.arrived;
    barrier.count += predicate != 0;
    barrier.all = barrier.all && predicate;
    barrier.any = barrier.any || predicate;
    if (machine.checks.race && orders && barrier.meeting < 0) barrier.meeting = told::new_meeting();
}

// All that met here stood in different lines: they do not wait for each other, they happen to be counted together.
void compare_places(const Barrier& barrier, const Thread& last) {
    for (const unsigned rank : barrier.waiting) {
        const Thread& other = machine.threads[rank];
        if (other.line != last.line || (!last.line && other.pc != last.pc)) {
            report({.kind = "barrier-places", .pc = last.pc, .other_pc = other.pc, .other_thread = (int)rank});
            return;
        }
    }
}

int meet_block(unsigned id, unsigned threads, Reduction reduction, int predicate, Pc pc) {
    Thread& thread = *machine.current;
    count_step(pc);
    const bool orders = id < barriers_of_block;  // those beyond are our own, for exchanges
    if (id >= barriers_of_block + barriers_of_groups || threads % warp_size)
        report_and_end({.kind = "barrier-arguments", .pc = pc, .number = id < 24 ? threads : id});
    Barrier& barrier = barriers[id];
    arrive(barrier, predicate, orders && threads);
    if (barrier.meeting >= 0) told::releases(thread, barrier.meeting);
    thread.barrier = id;
    thread.operation = (unsigned)reduction;
    thread.mask = threads;
    const unsigned wanted = threads ? threads : (unsigned)machine.threads.size();
    if (barrier.arrived < wanted) {
        barrier.waiting.push_back(thread.rank);
        wait_as(State::at_barrier, pc);
        return thread.result;
    }
    thread.pc = pc;
    if (!threads) compare_places(barrier, thread);
    for (const unsigned rank : barrier.waiting)
        result_for(machine.threads[rank], barrier, (Reduction)machine.threads[rank].operation);
    result_for(thread, barrier, reduction);
    open_barrier(barrier, &thread, orders);
    barrier = Barrier{};
    return thread.result;
}

}  // namespace

__attribute__((noinline)) int barrier(unsigned id, unsigned threads, Reduction reduction, int predicate, unsigned line) {
    machine.current->line = line;
    return meet_block(id, threads, reduction, predicate, (Pc)__builtin_return_address(0));
}

__attribute__((noinline)) void barrier_arrive(unsigned id, unsigned threads) {
    const Pc pc = (Pc)__builtin_return_address(0);
    count_step(pc);
    Thread& thread = *machine.current;
    if (id >= barriers_of_block || threads == 0 || threads % warp_size)
        report_and_end({.kind = "barrier-arguments", .pc = pc, .number = id < 16 ? threads : id});
    Barrier& barrier = barriers[id];
    arrive(barrier, 0, true);
    if (machine.checks.race) told::releases(thread, barrier.meeting);
    if (barrier.arrived < threads) return;
    for (const unsigned rank : barrier.waiting)
        result_for(machine.threads[rank], barrier, (Reduction)machine.threads[rank].operation);
    open_barrier(barrier, nullptr, true);
    barrier = Barrier{};
}

__attribute__((noinline)) const unsigned char* meet(
    unsigned mask, unsigned operation, const void* value, unsigned size, unsigned* participants, bool orders_memory) {
    const Pc pc = (Pc)__builtin_return_address(0);
    count_step(pc);
    Thread& thread = *machine.current;
    Warp& warp = warp_of(thread);
    const unsigned bit = 1u << thread.rank % warp_size;
    if (!(mask & bit)) {
        report({.kind = "mask", .pc = pc, .number = mask});
        mask |= bit;
    }
    thread.mask = mask & warp.present;
    thread.operation = operation;
    thread.value = value;
    thread.size = size;
    thread.orders_memory = orders_memory;
    thread.pc = pc;
    warp.waiting |= bit;
    if (!complete(warp, thread, &thread)) wait_as(State::at_warp, pc);
    *participants = thread.participants;
    return thread.record < 0 ? nullptr : warp.records[(unsigned)thread.record].data;
}

__attribute__((noinline)) unsigned active_mask() {
    const Pc pc = (Pc)__builtin_return_address(0);
    count_step(pc);
    Thread& thread = *machine.current;
    warp_of(thread).converging |= 1u << thread.rank % warp_size;
    wait_as(State::converging, pc);
    return thread.participants;
}

unsigned lane() { return machine.current->rank % warp_size; }
unsigned warp() { return machine.current->rank / warp_size; }
unsigned thread_rank() { return machine.current->rank; }
unsigned dynamic_shared_bytes() { return machine.dynamic_bytes; }

__attribute__((noinline)) void yield() {
    const Pc pc = (Pc)__builtin_return_address(0);
    count_step(pc);
    Thread& thread = *machine.current;
    thread.pc = pc;
    if (++spins > most_spins) report_and_end({.kind = "spin", .pc = pc, .number = most_spins});
    if (!queued) return;
    make_ready(thread);
    leave_to_scheduler();
}

__attribute__((noinline)) void bad_shuffle(unsigned source) {
    report({.kind = "shuffle", .pc = (Pc)__builtin_return_address(0), .number = source, .warning = true});
}

__attribute__((noinline)) void trap() { report_and_end({.kind = "trap", .pc = (Pc)__builtin_return_address(0)}); }

__attribute__((noinline)) void fail_assertion(const char* text, const char*, unsigned) {
    report_and_end({.kind = "assert", .pc = (Pc)__builtin_return_address(0), .text = text});
}

namespace {

[[noreturn]] void refuse_at(Pc pc, const char* what) {
    say("{\"event\":\"refused\",\"launch\":%d,\"pc\":%lu,\"text\":%s}\n", machine.launch, (unsigned long)pc,
        quoted(what, strlen(what)).c_str());
    end_process(4);
}

}  // namespace

__attribute__((noinline)) void refuse(const char* what) { refuse_at((Pc)__builtin_return_address(0), what); }

__attribute__((noinline)) void grid_barrier() {
    if (gridDim.x * gridDim.y * gridDim.z != 1)
        refuse_at((Pc)__builtin_return_address(0), "a barrier of the whole grid is not emulated where it has more than one block");
    meet_block(0, 0, Reduction::none, 0, (Pc)__builtin_return_address(0));
}

void copy_unseen(void* to, const void* from, unsigned size) { memcpy(to, from, size); }

constexpr unsigned window = 1u << 20;  // where dynamic shared memory begins in it; static variables lie around that

unsigned shared_window(const void* address) { return (unsigned)((std::uintptr_t)address - machine.dynamic) + window; }
unsigned char* from_shared_window(unsigned at) { return (unsigned char*)machine.dynamic + (std::ptrdiff_t)at - window; }

__attribute__((noinline)) void bad_leading_dimension(unsigned bytes) {
    report({.kind = "leading", .pc = (Pc)__builtin_return_address(0), .number = bytes});
}

unsigned char* warpgroup_buffer(unsigned bytes) {
    static unsigned char buffers[barriers_of_groups][128 * 512];
    if (bytes > sizeof buffers[0]) report_and_end({.kind = "exchange", .pc = machine.current->pc, .number = bytes / 128});
    return buffers[machine.current->rank / 128];
}

// ---- one block ----------------------------------------------------------------------------------------------------

namespace {

void thread_ends(Thread& thread) {
    thread.state = State::done;
    --machine.live;
    spins = 0;
    let_go(thread);
    Warp& warp = warp_of(thread);
    warp.live &= ~(1u << thread.rank % warp_size);
    for (unsigned left = warp.waiting; left; left &= left - 1)  // some may have waited for this one alone
        if (left & warp.waiting) complete(warp, machine.threads[warp.first + (unsigned)__builtin_ctz(left)], nullptr);
}

void fiber_main() {
    entry->invoke(arguments.data());
    thread_ends(*machine.current);
    leave_to_scheduler();
    __builtin_unreachable();
}

bool converge() {
    for (Warp& warp : warps) {
        if (!warp.converging) continue;
        const Pc pc = machine.threads[warp.first + (unsigned)__builtin_ctz(warp.converging)].pc;
        unsigned together = 0;
        for (unsigned left = warp.converging; left; left &= left - 1)
            if (machine.threads[warp.first + (unsigned)__builtin_ctz(left)].pc == pc) together |= left & -left;
        for (unsigned left = together; left; left &= left - 1) {
            Thread& thread = machine.threads[warp.first + (unsigned)__builtin_ctz(left)];
            thread.participants = together;
            make_ready(thread);
        }
        warp.converging &= ~together;
        return true;
    }
    return false;
}

// Everybody who still lives waits at the block's barrier, and the rest have returned from the kernel.
bool open_for_the_living() {
    Barrier& barrier = barriers[0];
    if (barrier.waiting.empty() || barrier.waiting.size() != machine.live) return false;
    for (const unsigned rank : barrier.waiting)
        if (machine.threads[rank].mask) return false;  // a count was given: it is waited for
    machine.current = &machine.threads[barrier.waiting.front()];
    int gone = 0;
    while (machine.threads[(unsigned)gone].state != State::done) ++gone;
    report({.kind = "barrier-exited", .pc = machine.current->pc, .other_thread = gone,
            .number = machine.threads.size() - machine.live});
    for (const unsigned rank : barrier.waiting)
        result_for(machine.threads[rank], barrier, (Reduction)machine.threads[rank].operation);
    open_barrier(barrier, nullptr, true);
    barrier = Barrier{};
    return true;
}

[[noreturn]] void deadlock() {
    std::map<std::pair<Pc, State>, std::pair<Thread*, unsigned>> places;
    for (Thread& thread : machine.threads)
        if (thread.state != State::done) {
            auto& place = places.try_emplace({thread.pc, thread.state}, &thread, 0u).first->second;
            ++place.second;
        }
    for (const auto& [key, place] : places) {
        machine.current = place.first;
        const bool at_warp = key.second == State::at_warp;
        report({.kind = at_warp ? "deadlock-warp" : "deadlock-barrier", .pc = key.first,
                .offset = at_warp ? (long)place.first->mask : (long)place.first->barrier,
                .text = places.size() > 1 ? "others" : "", .number = place.second});
    }
    end_process(3);
}

void prepare_block() {
    machine.live = (unsigned)machine.threads.size();
    ++machine.block_serial;
    head = queued = 0;
    spins = 0;
    for (Barrier& barrier : barriers)
        if (barrier.arrived) barrier = Barrier{};
    for (Warp& warp : warps) {
        warp.live = warp.present;
        warp.waiting = warp.converging = 0;
        for (Record& record : warp.records) record.readers = 0;
    }
    for (Thread& thread : machine.threads) {
        thread.stack_pointer = fresh_stack(thread.stack_top, fiber_main);
        thread.record = -1;
        thread.fenced = false;
        make_ready(thread);
    }
    // What shared memory holds at the start is undefined: not-a-number in every floating type.
    for (const Region& region : machine.statics) memset((void*)(machine.locals + region.begin), 0xff, region.bytes);
    memset((void*)machine.dynamic, 0xff, machine.dynamic_bytes);
    forget_copies();
    told::block_begins();
}

void run_block() {
    prepare_block();
    while (machine.live) {
        if (!queued) {
            if (converge() || open_for_the_living()) continue;
            deadlock();
        }
        Thread& thread = machine.threads[queue[head]];
        head = head + 1 == queue.size() ? 0 : head + 1;
        --queued;
        machine.current = &thread;
        threadIdx = thread.index;
        probe_switch(&scheduler_stack, thread.stack_pointer);
    }
    machine.current = nullptr;
}

// ---- the plan -----------------------------------------------------------------------------------------------------

std::vector<Entry>& entries() {
    static std::vector<Entry> all;
    return all;
}

[[noreturn]] void misfit(const char* what, long parameter, long expected, long got, int kind = ' ') {
    say("{\"event\":\"misfit\",\"launch\":%d,\"what\":\"%s\",\"parameter\":%ld,\"expected\":%ld,\"got\":%ld,\"kind\":\"%c\"}\n",
        machine.launch, what, parameter, expected, got, kind);
    end_process(4);
}

[[noreturn]] void bad_plan(const char* what) {
    fprintf(stderr, "the plan cannot be read: %s\n", what);
    end_process(70);
}

long number(FILE* plan) {
    long value;
    if (fscanf(plan, "%ld", &value) != 1) bad_plan("a number");
    return value;
}

bool fits(const Parameter& parameter, char kind, std::size_t size) {
    if (parameter.size != size) return false;
    if (parameter.kind == other) return true;
    return parameter.kind == kind || (kind == 'b' && (parameter.kind == real || parameter.kind == integer));
}

std::vector<unsigned char> content(FILE* plan) {  // size hex
    std::vector<unsigned char> bytes((std::size_t)number(plan));
    for (unsigned char& byte : bytes) {
        unsigned value;
        if (fscanf(plan, " %2x", &value) != 1) bad_plan("a value");
        byte = (unsigned char)value;
    }
    return bytes;
}

// 'p' buffer offset | 'n' | 'v' kind size hex
std::vector<unsigned char> argument(FILE* plan, long position, long count) {
    char form;
    if (fscanf(plan, " %c", &form) != 1) bad_plan("an argument");
    std::vector<unsigned char> bytes(sizeof(void*));
    char kind = pointer;
    if (form == 'p') {
        const std::uintptr_t base = machine.buffers[(std::size_t)number(plan)].begin;
        const std::uintptr_t address = base + (std::uintptr_t)number(plan);
        memcpy(bytes.data(), &address, sizeof address);
    } else if (form == 'v') {
        if (fscanf(plan, " %c", &kind) != 1) bad_plan("a kind");
        bytes = content(plan);
    }
    if (position < (long)entry->count && (long)entry->count == count && !fits(entry->parameters[position], kind, bytes.size()))
        misfit("argument", position, (long)entry->parameters[position].size, (long)bytes.size(), entry->parameters[position].kind);
    bytes.resize(std::max<std::size_t>(bytes.size(), 16));
    return bytes;
}

void make_threads(unsigned count) {
    machine.threads.assign(count, Thread{});
    queue.assign(count, 0);
    warps.assign((count + warp_size - 1) / warp_size, Warp{});
    for (unsigned rank = 0; rank < count; ++rank) {
        Thread& thread = machine.threads[rank];
        thread.rank = rank;
        thread.index = {rank % blockDim.x, rank / blockDim.x % blockDim.y, rank / (blockDim.x * blockDim.y)};
        thread.stack_top = (unsigned char*)machine.stacks + (rank + 1) * (stack_bytes + page);
        Warp& warp = warps[rank / warp_size];
        warp.first = rank / warp_size * warp_size;
        warp.present |= 1u << rank % warp_size;
    }
}

void check_guards() {
    for (std::size_t i = 0; i <= machine.buffers.size(); ++i) {
        const std::uintptr_t begin = i ? machine.buffers[i - 1].end : machine.arena;
        const std::uintptr_t end = i < machine.buffers.size() ? machine.buffers[i].begin : machine.arena_end;
        for (std::uintptr_t at = begin; at < end; ++at) {
            if (*(unsigned char*)at == guard_byte) continue;
            const bool after = i && (i == machine.buffers.size() || at - begin < end - at);
            const int buffer = (int)(after ? i - 1 : i);
            report({.kind = "guard", .pc = 0, .address = at, .size = 1, .write = 1, .space = "global", .buffer = buffer,
                    .offset = (long)(at - machine.buffers[(std::size_t)buffer].begin)});
            memset((void*)begin, guard_byte, end - begin);
            break;
        }
    }
}

void run_launch(FILE* plan, int index) {
    machine.launch = index;
    entry = &entries().at((std::size_t)number(plan));
    for (unsigned* side : {&gridDim.x, &gridDim.y, &gridDim.z, &blockDim.x, &blockDim.y, &blockDim.z}) *side = (unsigned)number(plan);
    machine.dynamic_bytes = (unsigned)number(plan);
    const long count = number(plan);
    std::vector<std::vector<unsigned char>> values;
    for (long i = 0; i < count; ++i) values.push_back(argument(plan, i, count));
    if (count != (long)entry->count) misfit("count", -1, entry->count, count);
    arguments.clear();
    for (auto& value : values) arguments.push_back(value.data());
    make_threads(blockDim.x * blockDim.y * blockDim.z);
    say("{\"event\":\"launch\",\"launch\":%d}\n", index);
    flush();
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
    if (!machine.checks.memory) check_guards();
    tell_counts();
    say("{\"event\":\"done\",\"launch\":%d}\n", index);
    flush();
}

// ---- the process --------------------------------------------------------------------------------------------------

Pc pc_of(const void* context) {
#if defined(__x86_64__)
    return (Pc)((const ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#else
    return (Pc)((const ucontext_t*)context)->uc_mcontext.pc;
#endif
}
const std::uintptr_t* stack_of(const void* context) {
#if defined(__x86_64__)
    return (const std::uintptr_t*)((const ucontext_t*)context)->uc_mcontext.gregs[REG_RSP];
#else
    return (const std::uintptr_t*)((const ucontext_t*)context)->uc_mcontext.sp;
#endif
}

extern "C" char __executable_start, etext;

// The place may be inside of a library: what looks like a return address on the thread's stack is told as well.
void tell_stack(const void* context) {
    if (!machine.current) return;
    const std::uintptr_t* at = stack_of(context);
    const std::uintptr_t* top = (const std::uintptr_t*)machine.current->stack_top;
    if (at >= top || at < (const std::uintptr_t*)(machine.current->stack_top - stack_bytes)) return;
    say("{\"event\":\"stack\",\"pcs\":[0");
    for (int found = 0; at < top && found < 16; ++at)
        if (*at >= (std::uintptr_t)&__executable_start && *at < (std::uintptr_t)&etext) say(",%lu", (unsigned long)*at), ++found;
    say("]}\n");
}

void on_signal(int signal, siginfo_t* info, void* context) {
    static volatile sig_atomic_t entered = 0;
    if (entered) _exit(3);
    entered = 1;
    const Pc pc = pc_of(context) + 1;  // as those after a call, of which the byte before is looked up
    tell_stack(context);
    if (signal == SIGALRM) report_and_end({.kind = "timeout", .pc = pc});
    const std::uintptr_t address = (std::uintptr_t)info->si_addr;
    const bool overflow = machine.current && address < (std::uintptr_t)machine.current->stack_top - stack_bytes &&
                          address >= (std::uintptr_t)machine.current->stack_top - stack_bytes - page;
    const char* name = signal == SIGFPE ? "SIGFPE" : signal == SIGILL ? "SIGILL" : signal == SIGABRT ? "SIGABRT"
                       : signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
    report_and_end({.kind = overflow ? "stack" : "crash", .pc = pc, .address = signal == SIGSEGV || signal == SIGBUS ? address : 0, .text = name});
}

void catch_signals() {
    static unsigned char stack[64 * 1024];
    stack_t alternative{};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM}) sigaction(signal, &action, nullptr);
}

void set_timer(double seconds) {
    itimerval timer{};
    timer.it_value.tv_sec = (time_t)seconds;
    timer.it_value.tv_usec = (suseconds_t)((seconds - (double)timer.it_value.tv_sec) * 1e6) + 1;
    setitimer(ITIMER_REAL, &timer, nullptr);
}

void* reserve(std::size_t bytes) {
    void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) bad_plan("no memory for the threads");
    return got;
}

unsigned char* map_file(const char* path, std::size_t bytes, std::uintptr_t wanted) {
    const int file = open(path, O_RDWR);
    if (file < 0) bad_plan("the buffers cannot be opened");
    void* got = MAP_FAILED;
    if (wanted) got = mmap((void*)wanted, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0);
    if (got == MAP_FAILED) got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (got == MAP_FAILED) bad_plan("the buffers cannot be mapped");
    return (unsigned char*)got;
}

void map_arena(const char* path, std::size_t bytes) {
    machine.arena = (std::uintptr_t)map_file(path, bytes, wanted_arena);
    machine.arena_end = machine.arena + bytes;
}

void make_stacks() {
    const std::size_t each = stack_bytes + page;
    machine.stacks = (std::uintptr_t)reserve(1024 * each);
    machine.stacks_end = machine.stacks + 1024 * each;
    for (unsigned i = 0; i < 1024; ++i) mprotect((void*)(machine.stacks + i * each), page, PROT_NONE);
    if (machine.checks.local) shadow_stacks(machine.stacks, machine.stacks_end);
}

void read_memory(FILE* plan, unsigned char* marks) {
    const long buffers = number(plan);
    for (long i = 0; i < buffers; ++i) {
        Buffer buffer{};
        buffer.begin = machine.arena + (std::uintptr_t)number(plan);
        buffer.end = buffer.begin + (std::uintptr_t)number(plan);
        const bool initialised = number(plan) != 0;
        if (!initialised && marks) buffer.written = marks + (buffer.begin - machine.arena);
        machine.buffers.push_back(buffer);
    }
    machine.locals = (std::uintptr_t)&anchor - (std::uintptr_t)number(plan);
    machine.locals_end = machine.locals + (std::uintptr_t)number(plan);
    machine.dynamic = machine.locals + (std::uintptr_t)number(plan);
    const long statics = number(plan);
    for (long i = 0; i < statics; ++i) {
        Region region{};
        region.begin = (std::uintptr_t)number(plan);
        region.bytes = (std::uintptr_t)number(plan);
        region.guard = number(plan) != 0;
        machine.statics.push_back(region);
    }
}

void set_variables(FILE* plan) {
    for (long left = number(plan); left > 0; --left) {
        void* address = (void*)number(plan);
        const std::vector<unsigned char> bytes = content(plan);
        memcpy(address, bytes.data(), bytes.size());
    }
}

}  // namespace

void enlist(const Entry& entry) { entries().push_back(entry); }

}  // namespace probe_emulation

int main(int count, char** words) {
    using namespace probe_emulation;
    if (count != 4 && count != 5) return 70;
    FILE* plan = fopen(words[1], "r");
    events = open(words[2], O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (!plan || events < 0) return 70;
    double seconds;
    if (fscanf(plan, "%lf", &seconds) != 1) bad_plan("the time-out");
    machine.step_limit = (std::uint64_t)number(plan);
    const rlim_t memory = (rlim_t)number(plan);
    const long checks = number(plan);
    machine.checks = {(checks & 1) != 0, (checks & 2) != 0, (checks & 4) != 0, (checks & 8) != 0, (checks & 16) != 0};
    map_arena(words[3], (std::size_t)number(plan));
    make_stacks();
    const rlimit limit{memory, memory};
    setrlimit(RLIMIT_AS, &limit);
    read_memory(plan, count == 5 ? map_file(words[4], machine.arena_end - machine.arena, 0) : nullptr);
    set_variables(plan);
    catch_signals();
    set_timer(seconds);
    const long launches = number(plan);
    for (long i = 0; i < launches; ++i) run_launch(plan, (int)number(plan));
    end_process(0);
}
