// Launches that overlap: programmatic dependent launch, from sm_90 on.
#pragma once

namespace probe {

// The first statement of a kernel whose `Launch.overlaps`: the next kernel may be brought onto the GPU, and what the one before
// wrote is there. No thread may leave before it: whoever comes next counts on it. On older cards it is nothing.
__device__ __forceinline__ void after_previous() {
#if !defined(PROBE_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace probe
