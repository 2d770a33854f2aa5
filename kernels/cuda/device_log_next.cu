// Counts a launch in the device log's counters (device_log.cuh): launched with one thread before the kernel that logs,
// in its stream, so that a CUDA graph counts at each replay.
extern "C" __global__ void probe_next_launch(unsigned* launch) { ++*launch; }
