"""The spec that was accepted last, which stays in effect while the one that is written now is refused.

Some parts of a spec act at once all the same, each by itself: people must be able to stop what costs money.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from piton.api.fields import Model
from piton.api.one_form import in_one_form
from piton.api.spec import Budget, Reclaim, Spec, StuckPods
from piton.contract import duration

ModelT = TypeVar("ModelT", bound=Model)

_AT_ONCE = ("suspend", "limits.deadline", "limits.budget")
"""Parts of a spec that act at once, also while another part is refused."""
_BUDGET = tuple(f"limits.budget.{field.alias or name}" for name, field in Budget.model_fields.items())


def accepted_before(
    accepted: Mapping[str, Any], written: object, accept: Callable[[Mapping[str, Any]], ModelT | None]
) -> tuple[ModelT | None, str]:
    """Return the spec that was accepted last, with those parts of what is written now that act at once.

    A part that cannot be parsed, or that breaks a rule there, stays as it was. A sentence names both kinds of parts.

    Args:
        accepted: the spec that was accepted last.
        written: the spec as it is now.
        accept: returns a document as the spec that it is; None if it is not acceptable.
    """
    spec, document = accept(accepted), accepted
    if spec is None or not isinstance(written, Mapping):
        return spec, _describe([], [])
    for path in _AT_ONCE:
        is_good = accept(_with_part(document, written, path)) is not None
        for part in (path,) if is_good or path != "limits.budget" else _BUDGET:
            changed = _with_part(document, written, part)
            found = accept(changed)
            spec, document = (spec, document) if found is None else (found, changed)
    return spec, _describe(*_new_parts(accepted, document, written, accept))


def _new_parts(
    accepted: Mapping[str, Any],
    document: Mapping[str, Any],
    written: Mapping[str, Any],
    accept: Callable[[Mapping[str, Any]], Model | None],
) -> tuple[list[str], list[str]]:
    """Return the new parts that act at once, by the document that is in effect, and those that do not.

    Values are compared, not texts: neither a default that is written out nor 60m in place of 1h is new.
    """
    before, now = (_values(accept(each)) for each in (accepted, document))

    def asked(path: str) -> object:
        """Return the value that is written; what is written where that is none."""
        found = accept(_with_part(document, written, path))
        return _part(written, path) if found is None else _part(_values(found), path)

    taken: list[str] = []
    left: list[str] = []
    for path in _AT_ONCE:
        parts = [path]
        if path == "limits.budget" and asked(path) != _part(now, path):
            fields = [field for field in _BUDGET if asked(field) != _part(before, field)]
            parts = fields if any(asked(field) == _part(now, field) for field in fields) else parts
        for part in parts:
            wish = asked(part)
            if wish != _part(before, part) and _part(written, part) != _part(accepted, part):
                (taken if wish == _part(now, part) else left).append(part)
    return taken, left


def _values(spec: Model | None) -> Mapping[str, Any]:
    return {} if spec is None else in_one_form(spec).model_dump(mode="json", by_alias=True)


def _describe(taken: Sequence[str], left: Sequence[str]) -> str:
    """Return what is in effect, with the new parts that act at once, and those that do not."""
    but = f", but for the new {_listed(taken)}" if taken else ""
    yet = f"; the new {_listed(left)} {'does' if len(left) == 1 else 'do'} not act yet" if left else ""
    return f"the spec that was accepted before stays in effect{but}{yet}"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def keep(spec: Spec, written: object) -> Spec:
    """Return the spec, but it deletes nothing that the one that is written now may keep.

    A part that cannot be parsed keeps: a mistake deletes neither a claim nor a run, and forces no pod.
    """
    volume, lives = spec.checkpoint.volume, spec.ttl_after_finished
    if _part(written, "checkpoint.volume.reclaim") != Reclaim.DELETE:
        volume = volume.model_copy(update={"reclaim": Reclaim.RETAIN})
    now = _part(written, "ttlAfterFinished")
    if not isinstance(now, str) or not now or not re.fullmatch(duration.PATTERN, now):
        lives = None
    elif lives is not None:
        lives = max(lives, now, key=duration.parse_duration)
    limits = spec.limits
    if _part(written, "limits.stuckPods") != StuckPods.FORCE_DELETE:
        limits = limits.model_copy(update={"stuck_pods": StuckPods.REPORT})
    checkpoint = spec.checkpoint.model_copy(update={"volume": volume})
    return spec.model_copy(update={"checkpoint": checkpoint, "ttl_after_finished": lives, "limits": limits})


def _part(document: object, path: str) -> object:
    """Return what stands at a path of a document; None if nothing does."""
    for step in path.split("."):
        document = document.get(step) if isinstance(document, Mapping) else None
    return document


def _with_part(document: Mapping[str, Any], written: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return a copy of the document with this part as it is written; as it was, where what it is in is no mapping."""
    first, _, rest = path.partition(".")
    if not rest:
        others = {key: value for key, value in document.items() if key != first}
        return {**others, first: written[first]} if written.get(first) is not None else others
    inner = written.get(first, {})
    if not isinstance(inner, Mapping):
        return document  # also where it is null, which is no mapping and no wish to drop all that is in it
    return {**document, first: _with_part(document.get(first) or {}, inner, rest)}
