from support.alone import outside_piton, quiet_torch

__all__ = ["outside_piton", "quiet_torch"]
