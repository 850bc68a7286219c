"""Spaces: which axes of which tensors are one, and what may be done to all of them together without changing a function."""
