"""Retention of checkpoints: the policy (pure), its application, and checkpoints reduced to their weights."""
