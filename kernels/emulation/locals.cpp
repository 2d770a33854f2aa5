// Local memory and the program's own variables. Kernels of this flavour are compiled with -fsanitize=address and some of
// -fsanitize=undefined; the functions that the compiler calls are these, not those of the sanitizers' libraries.
//
// The compiler leaves zones between the local variables of a frame and marks them in a shadow: a byte for eight bytes of
// stack, 0 if all of them may be touched, 1..7 if so many, negative if none. Each thread has a stack of its own, which
// alone is shadowed, so that switching from one to another needs no word to anybody.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <iterator>
#include <map>

#include "machine.hpp"

namespace probe_emulation {

namespace {

#if defined(__x86_64__)
constexpr std::uintptr_t shadow_offset = 0x7fff8000;  // where the compiler writes: address / 8 + this
#else
constexpr std::uintptr_t shadow_offset = 1ul << 36;
#endif
constexpr std::uintptr_t frame_magic = 0x41b58ab3;
constexpr unsigned char left_of_frame = 0xf1, out_of_scope = 0xf8;
constexpr std::size_t margin = 1 << 20;  // of the process's own stack, on which constructors run

signed char* shadow_of(std::uintptr_t address) { return (signed char*)(address / 8 + shadow_offset); }
std::uintptr_t address_of(const signed char* shadow) { return ((std::uintptr_t)shadow - shadow_offset) * 8; }

bool is_open(std::uintptr_t address, unsigned bytes = 1) {  // which lie in one granule of eight
    const signed char shadow = *shadow_of(address);
    return shadow == 0 || (signed char)(address % 8 + bytes) <= shadow;
}

// Most accesses are these: to the own stack, all of it open.
bool is_plain(std::uintptr_t address, unsigned bytes) {
    if (!machine.current || (std::uintptr_t)machine.current->stack_top - address - 1 >= stack_bytes) return false;
    if (address % 8 + bytes <= 8) return is_open(address, bytes);
    return bytes == 16 && address % 8 == 0 && *(const short*)shadow_of(address) == 0;
}

struct Variable {  // beside which an address lies
    long begin = 0, size = 0, distance = -1;
    char name[64] = "";
};

// "N begin size length name[:line] ...", places from the frame's beginning: what the compiler says of a frame.
Variable nearest_in(const char* description, long at) {
    Variable found;
    char* rest;
    long left = strtol(description, &rest, 10);
    for (; left > 0; --left) {
        Variable one;
        one.begin = strtol(rest, &rest, 10);
        one.size = strtol(rest, &rest, 10);
        const long length = strtol(rest, &rest, 10);
        one.distance = at < one.begin ? one.begin - at : at < one.begin + one.size ? 0 : at - one.begin - one.size + 1;
        snprintf(one.name, sizeof one.name, "%.*s", (int)strcspn(rest + 1, ": "), rest + 1);
        rest += 1 + length;
        if (found.distance < 0 || one.distance < found.distance) found = one;
    }
    return found;
}

void tell_place(char* text, std::size_t size, const Variable& variable, long at, const char* sort) {
    if (at < variable.begin)
        snprintf(text, size, "%ld bytes before %s '%s' of %ld bytes", variable.begin - at, sort, variable.name, variable.size);
    else if (at >= variable.begin + variable.size)
        snprintf(text, size, "%ld bytes after the end of %s '%s' of %ld bytes", at - variable.begin - variable.size, sort,
                 variable.name, variable.size);
    else
        snprintf(text, size, "in %s '%s', whose scope has ended", sort, variable.name);
}

void describe(char* text, std::size_t size, std::uintptr_t address, std::uintptr_t bottom) {
    const signed char *at = shadow_of(address), *last = shadow_of(bottom);
    while (at > last && (unsigned char)*at != left_of_frame) --at;
    while (at > last && (unsigned char)at[-1] == left_of_frame) --at;
    const std::uintptr_t* frame = (const std::uintptr_t*)address_of(at);
    if ((unsigned char)*at != left_of_frame || frame[0] != frame_magic) {
        snprintf(text, size, "outside of every local variable");
        return;
    }
    const long place = (long)(address - (std::uintptr_t)frame);
    tell_place(text, size, nearest_in((const char*)frame[1], place), place, "local variable");
}

void wrong(const At& at, const char* space, const char* text) {
    report({.kind = "access", .pc = at.pc, .address = at.address, .size = at.size, .write = at.write, .space = space, .text = text});
}

void shadow(std::uintptr_t begin, std::uintptr_t end) {
    const std::uintptr_t first = (std::uintptr_t)shadow_of(begin) & ~(page - 1);
    const std::uintptr_t last = ((std::uintptr_t)shadow_of(end) + page - 1) & ~(page - 1);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    if (mmap((void*)first, last - first, PROT_READ | PROT_WRITE, flags, -1, 0) == (void*)first) return;
    fprintf(stderr, "the check of local memory finds no room for its shadow of the stacks\n");
    _exit(70);
}

}  // namespace

void shadow_stacks(std::uintptr_t begin, std::uintptr_t end) { shadow(begin, end); }

void look_local(const At& at) {
    const std::uintptr_t top = (std::uintptr_t)machine.current->stack_top, bottom = top - stack_bytes;
    char text[192];
    if (at.address >= top || at.address < bottom) {
        const std::uintptr_t rank = (at.address - machine.stacks) / (stack_bytes + page);
        const uint3 owner = rank < machine.threads.size() ? machine.threads[rank].index : uint3{};
        snprintf(text, sizeof text, "in local memory of thread (%u,%u,%u)", owner.x, owner.y, owner.z);
        return wrong(at, "local", text);
    }
    for (unsigned i = 0; i < at.size; ++i)
        if (!is_open(at.address + i)) {
            describe(text, sizeof text, at.address + i, bottom);
            return wrong(at, "local", text);
        }
}

// ---- variables outside of functions -------------------------------------------------------------------------------

namespace {

struct Global {  // as the compiler lays it out
    std::uintptr_t begin, size, size_with_zone;
    const char *name, *module;
    std::uintptr_t dynamic, location, indicator;
};

std::map<std::uintptr_t, Global>& globals() {  // by begin; made by the first that registers, before any constructor of ours
    static auto* all = new std::map<std::uintptr_t, Global>;
    return *all;
}

bool is_index(std::uintptr_t address) {  // threadIdx and its like, which are read all the time
    const auto in = [address](const void* what, std::size_t size) { return address - (std::uintptr_t)what < size; };
    return in(&threadIdx, sizeof threadIdx) || in(&blockIdx, sizeof blockIdx) || in(&blockDim, sizeof blockDim) || in(&gridDim, sizeof gridDim);
}

}  // namespace

void look_variable(const At& at) {
    if (is_index(at.address)) return;
    const auto after = globals().upper_bound(at.address);
    if (after == globals().begin()) return;
    const Global& global = std::prev(after)->second;
    const std::uintptr_t end = global.begin + global.size;
    if (at.address + at.size <= end || at.address >= global.begin + global.size_with_zone) return;
    Variable variable;
    variable.size = (long)global.size;
    snprintf(variable.name, sizeof variable.name, "%s", global.name);
    char text[192];
    tell_place(text, sizeof text, variable, (long)((at.address < end ? end : at.address) - global.begin), "variable");
    wrong(at, "variable", text);
}

}  // namespace probe_emulation

using probe_emulation::look;
using probe_emulation::Pc;

#define PROBE_HERE (Pc) __builtin_return_address(0)
#define PROBE_HOOK(name, bytes, write)                                                                                   \
    extern "C" void __asan_##name##bytes##_noabort(std::uintptr_t p) {                                                   \
        if (!probe_emulation::is_plain(p, bytes)) look({p, bytes, write, false, false, PROBE_HERE});                     \
    }
#define PROBE_HOOKS(bytes) PROBE_HOOK(load, bytes, false) PROBE_HOOK(store, bytes, true)
PROBE_HOOKS(1)
PROBE_HOOKS(2)
PROBE_HOOKS(4)
PROBE_HOOKS(8)
PROBE_HOOKS(16)
extern "C" void __asan_loadN_noabort(std::uintptr_t p, std::size_t bytes) { look({p, (unsigned)bytes, false, false, false, PROBE_HERE}); }
extern "C" void __asan_storeN_noabort(std::uintptr_t p, std::size_t bytes) { look({p, (unsigned)bytes, true, false, false, PROBE_HERE}); }

// Variables of a scope, where they are too many bytes for the compiler to mark them itself.
extern "C" void __asan_poison_stack_memory(std::uintptr_t p, std::size_t bytes) {
    memset(probe_emulation::shadow_of(p), probe_emulation::out_of_scope, bytes / 8);
}
extern "C" void __asan_unpoison_stack_memory(std::uintptr_t p, std::size_t bytes) {
    memset(probe_emulation::shadow_of(p), 0, bytes / 8);
    if (bytes % 8) *probe_emulation::shadow_of(p + bytes) = (signed char)(bytes % 8);
}

extern "C" void __asan_init() {
    const std::uintptr_t here = (std::uintptr_t)__builtin_frame_address(0);
    probe_emulation::shadow(here - probe_emulation::margin, here + probe_emulation::margin);
}
extern "C" void __asan_register_globals(probe_emulation::Global* all, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) probe_emulation::globals()[all[i].begin] = all[i];
}
extern "C" void __asan_unregister_globals(probe_emulation::Global*, std::size_t) {}
extern "C" void __asan_version_mismatch_check_v8() {}
extern "C" void __asan_before_dynamic_init(const char*) {}
extern "C" void __asan_after_dynamic_init() {}
extern "C" void __asan_handle_no_return() {}  // a kernel's last call of that sort ends the process

// ---- undefined behaviour ------------------------------------------------------------------------------------------

namespace {

struct Type {
    unsigned short kind, facts;  // kind 0 is an integer; facts: bit 0 signed, the rest log2 of its bits
    char name[1];                // with quotation marks
};
struct SourceLocation {
    const char* file;
    unsigned line, column;
};
struct OutOfBounds {
    SourceLocation place;
    const Type *array, *index;
};
struct ShiftOutOfBounds {
    SourceLocation place;
    const Type *left, *right;
};
struct TypeMismatch {
    SourceLocation place;
    const Type* type;
    unsigned char log_alignment, use;  // 0 a read, 1 a write
};

long integer(const Type* type, std::uintptr_t value) {
    const unsigned bits = 1u << (type->facts >> 1);
    if (bits >= 64) return bits == 64 ? (long)value : *(const long*)value;
    return type->facts & 1 ? (long)(value << (64 - bits)) >> (64 - bits) : (long)value;
}

}  // namespace

extern "C" void __ubsan_handle_out_of_bounds(const OutOfBounds* about, std::uintptr_t index) {
    char text[192];
    snprintf(text, sizeof text, "index %ld of %.120s", integer(about->index, index), about->array->name);
    probe_emulation::report({.kind = "index", .pc = PROBE_HERE, .text = text});
}

extern "C" void __ubsan_handle_shift_out_of_bounds(const ShiftOutOfBounds* about, std::uintptr_t, std::uintptr_t by) {
    char text[192];
    snprintf(text, sizeof text, "a shift of %.120s by %ld", about->left->name, integer(about->right, by));
    probe_emulation::report({.kind = "shift", .pc = PROBE_HERE, .text = text, .warning = true});
}

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* about, std::uintptr_t address) {
    const std::uintptr_t alignment = std::uintptr_t(1) << about->log_alignment;
    if (address % alignment == 0 || about->use > 1) return;  // a null pointer is told when it is followed
    probe_emulation::misaligned({address, (unsigned)alignment, about->use == 1, false, true, PROBE_HERE});
}
