"""The kernel families of the package: one small file of glue a family, joined in `registry`."""
