"""Words that two versions of Piton say to each other, of which the older one does not know all."""

from enum import StrEnum
from typing import Self


class OpenEnum(StrEnum):
    """An enum that keeps a word that it does not know, as the enums of proto3 do, instead of refusing all around it.

    Such a word equals its text and no member. It is not iterated over, and two of them are not the same object.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word

    @property
    def is_known(self) -> bool:
        """True if it is a word of this version."""
        return type(self)._value2member_map_.get(self._value_) is self
