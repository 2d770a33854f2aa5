// cuda::pipeline of a thread or of a whole block, each of whose threads produces and consumes.
#pragma once

#include "cuda_barrier.hpp"

namespace cuda {

template <thread_scope Scope, ::std::uint8_t Stages>
struct pipeline_shared_state {};
enum class pipeline_role { producer, consumer };

template <thread_scope Scope>
class pipeline {
    static void meet() {
        if constexpr (Scope == thread_scope_block) probe_emulation::barrier(0, 0);
    }

public:
    void producer_acquire() {}
    PROBE_INLINE void producer_commit() { probe_emulation::commit_copies(); }
    PROBE_INLINE void wait_prior(::std::size_t prior) { probe_emulation::wait_for_copies(prior), meet(); }
    PROBE_INLINE void consumer_wait() { wait_prior(0); }  // all have committed; of stages after it no more is asked
    PROBE_INLINE void consumer_release() { meet(); }  // all have read
    void quit() {}
};
inline pipeline<thread_scope_thread> make_pipeline() { return {}; }
template <class Group, thread_scope Scope, ::std::uint8_t Stages>
pipeline<Scope> make_pipeline(const Group&, pipeline_shared_state<Scope, Stages>*) { return {}; }
template <class Group, thread_scope Scope, ::std::uint8_t Stages, class Roles>
PROBE_INLINE pipeline<Scope> make_pipeline(const Group&, pipeline_shared_state<Scope, Stages>*, Roles) {
    probe_emulation::refuse("a cuda::pipeline whose threads produce or consume is not emulated");
}
template <::std::uint8_t Prior, thread_scope Scope>
PROBE_INLINE void pipeline_consumer_wait_prior(pipeline<Scope>& pipe) { pipe.wait_prior(Prior); }

}  // namespace cuda
