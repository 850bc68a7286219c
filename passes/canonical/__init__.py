"""Rules that write every computation in its plainest form. One file a family; each keeps results bit by bit."""
