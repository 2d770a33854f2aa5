"""An exercise in fusion: D = A[10:165, 20:220] * B; C = C / C.max(); E = D * C, in five kernels, three, and one."""
