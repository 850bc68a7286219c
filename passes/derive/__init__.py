"""Programs for generation, derived from the whole-sequence forward."""
