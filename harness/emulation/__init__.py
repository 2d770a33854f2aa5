"""Plans of CUDA kernels on the CPU, thread for thread."""
