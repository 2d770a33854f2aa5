"""CUDA from the source to the launch: compiled, loaded, launched, timed, every call checked; and what the GPU is."""
