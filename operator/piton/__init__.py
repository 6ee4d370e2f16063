"""Piton: trains models on machines that will be taken away."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("piton-operator")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
