"""Which checkpoints stay: the policy (pure), what applies it, and checkpoints reduced to their weights."""
