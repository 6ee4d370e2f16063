"""Verdicts of the fuzzers."""

from enum import StrEnum


class VerdictKind(StrEnum):
    """Base of what may become of a case; what should not be is written in capitals."""

    @property
    def is_fault(self) -> bool:
        """True if it should not be."""
        return self.isupper()
