"""The ATen operators that compiled code serves, by kind: one table a file, joined in `tables`."""
