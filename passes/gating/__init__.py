"""Parts of `freeze-gates`: selections as partitions of channels, and the order of channels as a matter of parameters."""
