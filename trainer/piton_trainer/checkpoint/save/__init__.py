"""Saving of a checkpoint: in the background, or while training waits."""
