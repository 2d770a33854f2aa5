"""What is run: the CUDA kernels, their float64 twins and their CPU emulation."""
