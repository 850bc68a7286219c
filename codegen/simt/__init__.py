"""Kernels of thread blocks: their interface, and what they mean one thread after another."""
