"""Loading of a checkpoint: one pass over its files, shared by the ranks."""
