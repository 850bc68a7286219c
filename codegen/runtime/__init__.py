"""Running artifacts with TVM's runtime library alone: the compiler is never loaded."""
