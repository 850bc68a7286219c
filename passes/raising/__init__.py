"""Raising: regions of ATen calls recognised by data flow as model operations. One file a rule family."""
