"""Health of the mirror as the trainer knows it, from the states of one process after the other. Pure.

    errors        failures of this attempt, by class
    has_mirrored  True once a checkpoint was uploaded, or was found to be in the bucket
    reason        the reason why nothing is mirrored, while that is so

A bucket that refuses is a reason at once, because only the user can change something. Other failures may pass by
themselves: they are a reason when nothing has moved for long. A reason ends when an upload succeeds, and not when bytes
move again.
"""

from collections import Counter

from piton_trainer.mirror import ERROR_CLASSES, OTHER
from piton_trainer.mirror.messages import MirrorState

_SILENT = "no upload has moved for long"


class MirrorHealth:
    """Failures and successes of the mirror in this attempt."""

    def __init__(self, place: str, patience_seconds: float) -> None:
        """Observe the mirror to `place`; it may stand still for `patience_seconds`."""
        self._place = place
        self._patience_seconds = patience_seconds
        self._ended: Counter[str] = Counter()
        """Failures of processes that have ended, and their deaths."""
        self._trouble: str | None = None
        """Words of the last failure since the last success."""
        self._is_off = False
        self.has_mirrored = False

    def on_state(self, before: MirrorState, state: MirrorState) -> None:
        """Take a new state of the same process."""
        if state.successes > before.successes:
            self.has_mirrored, self._is_off, self._trouble = True, False, None
        if state.trouble is not None:
            self._trouble = state.trouble
            self._is_off = self._is_off or state.is_refused

    def on_progress(self, still_seconds: float | None) -> None:
        """Remember a stall, so that it ends with the next upload and not when bytes move again."""
        self._is_off = self._is_off or self._is_stalled(still_seconds)

    def on_death(self, state: MirrorState, detail: str) -> None:
        """Count the end of a process; `state` is its last one."""
        self._ended.update(state.errors)
        self._ended[OTHER] += 1
        self._trouble = detail

    def errors(self, state: MirrorState) -> dict[str, int]:
        """Return the number of failures of each class."""
        return {kind: self._ended[kind] + state.errors.get(kind, 0) for kind in ERROR_CLASSES}

    def reason(self, state: MirrorState, still_seconds: float | None) -> str | None:
        """Return the reason why nothing is mirrored; None if something is, or nothing has to be.

        `still_seconds` is the time for which an upload waits and nothing has moved; None if none waits.
        """
        if state.refusal is not None or still_seconds is None:
            return state.refusal
        is_off = self._is_off or self._is_stalled(still_seconds)
        return f"nothing is mirrored to {self._place}: {self._trouble or _SILENT}" if is_off else None

    def _is_stalled(self, still_seconds: float | None) -> bool:
        return still_seconds is not None and still_seconds >= self._patience_seconds
