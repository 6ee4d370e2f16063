"""Checkpoints on disk: folders, files, fence, and the archive that holds the tensors."""
