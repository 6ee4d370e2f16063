"""The command line: parses arguments, prints; nothing else."""

from piton.cli.main import main

__all__ = ["main"]
