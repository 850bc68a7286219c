"""How a pass is held to its contract: the two functions aligned, cut into regions, fed probes, and compared."""
