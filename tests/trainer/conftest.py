from support.alone import outside_piton, quiet_torch
from support.pristine import directory, pristine

__all__ = ["directory", "outside_piton", "pristine", "quiet_torch"]
