"""Money: what a run has cost, what its budget allows, and an estimate of what it will cost. Pure."""
