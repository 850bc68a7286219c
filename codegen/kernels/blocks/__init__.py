"""Kernels of thread blocks, for GPUs: the arithmetic of the kernels beside this folder, cut into blocks."""
