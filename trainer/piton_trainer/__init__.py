"""Trains on machines that will be taken away. `session()` is all that somebody's own training loop needs."""

from piton_trainer.session import Session, session

__all__ = ["Session", "session"]
