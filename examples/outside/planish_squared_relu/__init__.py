"""An operation, a pass, a kernel family and a target for planish, from outside of it."""
