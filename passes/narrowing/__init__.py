"""The rules of `narrow-attention`, and the analysis they read: where the elements of moved tensors come from."""
