// Copies to shared memory that the GPU makes in the background (cp.async): the bytes arrive when their thread has waited for
// them, and no earlier, so that a kernel which does not wait reads what stood there before. The GPU may be faster.

#include <algorithm>
#include <cstring>

#include "machine.hpp"

namespace probe_emulation {

namespace {

struct Copy {
    void* to;
    unsigned bytes;
    Pc pc;
    unsigned char content[largest_copy];
};
struct Queue {
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;  // how many copies there were at each commit
};
std::vector<Queue> queues;  // of each thread of the block

Queue& own() { return queues[machine.current->rank]; }

}  // namespace

__attribute__((noinline)) void copy_later(void* to, const void* from, unsigned bytes, unsigned given) {
    bytes = std::min(bytes, largest_copy), given = std::min(given, bytes);
    Copy copy{to, bytes, (Pc)__builtin_return_address(0), {}};
    told::copy_begins(to, bytes, from, given, copy.pc);
    memcpy(copy.content, from, given);
    own().copies.push_back(copy);
}

void commit_copies() { own().groups.push_back(own().copies.size()); }

void wait_for_copies(std::size_t prior) {
    Queue& queue = own();
    if (queue.groups.size() <= prior) return;
    const auto last = queue.groups.end() - (std::ptrdiff_t)prior;
    const auto count = (std::ptrdiff_t)last[-1];
    for (auto copy = queue.copies.begin(); copy != queue.copies.begin() + count; ++copy) {
        memcpy(copy->to, copy->content, copy->bytes);
        told::copy_ends(copy->to, copy->bytes, copy->pc);
    }
    queue.copies.erase(queue.copies.begin(), queue.copies.begin() + count);
    queue.groups.erase(queue.groups.begin(), last);
    for (std::size_t& group : queue.groups) group -= (std::size_t)count;
}

void wait_for_all_copies() { commit_copies(), wait_for_copies(0); }

// What the last block never waited for is of no use to anybody.
void forget_copies() {
    for (Queue& queue : queues) {
        for (const Copy& copy : queue.copies) told::copy_is_forgotten(copy.to, copy.bytes);
        queue.copies.clear(), queue.groups.clear();
    }
    queues.resize(machine.threads.size());
}

}  // namespace probe_emulation
