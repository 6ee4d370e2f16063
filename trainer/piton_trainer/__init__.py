"""Trains on machines that will be taken away. `session()` is all that somebody's own training loop needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piton_trainer.telemetry.callbacks import Callback
    from piton_trainer.training.session import Session, session

__all__ = ["Callback", "Session", "session"]


def __getattr__(name: str) -> Any:
    """Import torch only for those who train: a recipe's settings are checked on machines that do not have it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from piton_trainer.telemetry import callbacks
    from piton_trainer.training import session as sessions

    return getattr(callbacks if name == "Callback" else sessions, name)
