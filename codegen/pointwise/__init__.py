"""Elementwise, view and reduction kernels, written from expressions of indices and fused as the graph allows."""
