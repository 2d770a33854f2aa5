"""`probe kernels`: our kernels tested and timed, and a kernel of the user's own run."""
