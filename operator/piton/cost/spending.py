"""The cost of a run: each attempt pays for its nodes, hours times a recorded price.

Nothing is ever added up over time. The cost is computed anew, from the records of the attempts and the clock, so a pass
that is repeated counts nothing twice and an operator that was away misses nothing. It never falls: the moment up to
which was counted is written down as well, and a clock that goes back stands still until then.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fractions import Fraction

from piton.api.spec import Spec
from piton.api.status import AttemptState, AttemptStatus, CostStatus, RunStatus
from piton.observed import AttemptSeen, ReplicaSeen

HOUR = Fraction(3600)
_EXACT_DIGITS = 6
_TICK = timedelta(microseconds=1)


def dollars(text: str | None) -> Fraction:
    """An amount as it is written; nothing is none."""
    return Fraction(text) if text else Fraction(0)


def as_text(amount: Fraction, digits: int = 2) -> str:
    """An amount as it is written down, to the next whole cent: no cost becomes smaller by that."""
    whole, rest = divmod(math.ceil(amount * 10**digits), 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def highest(spec: Spec | None) -> Fraction | None:
    """Return the highest price per node and hour that the user accepts."""
    price = spec.capacity.max_price_per_hour if spec else None
    return None if price is None else Fraction(price)


def spent(status: RunStatus, now: datetime) -> Fraction:
    """Return the cost of all attempts until now."""
    now = _counted(status, now)
    earlier = dollars(status.cost.earlier) if status.cost else Fraction(0)
    return earlier + sum((_of_attempt(record, now) for record in status.attempts), Fraction(0))


def per_hour(status: RunStatus) -> Fraction:
    """Return the current price per hour of all nodes."""
    record = status.current
    if record is None or record.state is AttemptState.ENDED or record.billed_from is None:
        return Fraction(0)
    return dollars(record.price_per_hour)


def bill(status: RunStatus, seen: AttemptSeen | None, spec: Spec | None, *, now: datetime) -> RunStatus:
    """Take in which machines the current attempt stands on. It keeps the price that they had when it came there."""
    record = status.current
    placed = _placed(seen)
    if record is None or seen is None or not placed or not _has_changed(record, placed):
        return status
    found, now = _price(placed, highest(spec)), _counted(status, now)
    if record.billed_from is None and (found is not None or seen.running):
        # Without a price it is not worth a write of its own: that it runs will be one.
        since = min(_moments(placed)[0], now)
        record = record.model_copy(update={"billed_from": max(since, _paid_until(status.attempts[:-1], since))})
    if found is None:
        return _with(status if record.price_per_hour is None else _noted(status, is_incomplete=True), record)
    if any(replica.node_price is None for replica in placed):
        status = _noted(status, is_bound=True)
    return _with(status, _priced(record, placed, found, now))


def stop(status: RunStatus, seen: AttemptSeen | None, *, now: datetime) -> RunStatus:
    """The current attempt's machines are paid no more: from when the last pod ended, where all of them say when."""
    record = status.current
    if record is None or record.billed_from is None:
        return status
    now = _counted(status, now)
    ends = [replica.ended_at for replica in _placed(seen)]
    known = [moment for moment in ends if moment is not None]
    end = min(max(known), now) if len(known) == len(ends) >= max(1, record.billed_machines) else now
    counted = status.cost.time if status.cost and status.cost.time else end
    return _with(status, record.model_copy(update={"billed_until": max(record.billed_from, end, counted)}))


def stop_at_last_sight(status: RunStatus) -> RunStatus:
    """The same, where what paid for the machines is known to have ended with what wrote the status."""
    record = status.current
    if record is None or record.state is AttemptState.ENDED or record.billed_from is None or record.billed_until:
        return status
    seen_at = status.cost.time if status.cost and status.cost.time else record.billed_from
    return _with(status, record.model_copy(update={"billed_until": max(record.billed_from, seen_at)}))


def forget(status: RunStatus, dropped: Sequence[AttemptStatus]) -> RunStatus:
    """Attempts leave the list; what they have cost stays in the sum."""
    gone = sum((_of_attempt(record, record.created_time) for record in dropped), Fraction(0))
    if not gone:
        return status
    earlier = gone + (dollars(status.cost.earlier) if status.cost else 0)
    return _noted(status, earlier=as_text(earlier, _EXACT_DIGITS))


def shown(status: RunStatus, budget: str | None, *, now: datetime) -> RunStatus:
    """The status with the sums as of now, for people. A run of which nothing is known has none."""
    total, rate = spent(status, now), per_hour(status)
    if status.cost is None and budget is None and not total and not rate:
        return status
    unpriced = any(record.billed_until and record.price_per_hour is None for record in status.attempts)
    return _noted(
        status,
        is_incomplete=unpriced or bool(status.cost and status.cost.is_incomplete),
        spent=as_text(total),
        per_hour=as_text(rate),
        wasted=as_text(total * _share_of_lost_steps(status)),
        budget=budget,
        time=_counted(status, now),
    )


def warned(status: RunStatus, budget: str) -> RunStatus:
    """The status, with word that people were warned of this budget's end."""
    return _noted(status, warned_of=budget)


def _counted(status: RunStatus, now: datetime) -> datetime:
    """Now, but never before what was counted already."""
    return max(now, status.cost.time) if status.cost and status.cost.time else now


def _of_attempt(record: AttemptStatus, now: datetime) -> Fraction:
    before = dollars(record.billed_before)
    if record.billed_from is None or record.price_per_hour is None:
        return before
    until = record.billed_until or record.ended_time or now
    seconds = Fraction(max(0, (until - record.billed_from) // _TICK), timedelta(seconds=1) // _TICK)
    return before + dollars(record.price_per_hour) * seconds / HOUR


def _paid_until(records: Iterable[AttemptStatus], otherwise: datetime) -> datetime:
    """Return the moment until which these attempts are paid for. One run pays for no two attempts at a time.

    The clocks of operator and API server differ. The end of an attempt that a restored status still had in flight is
    only known to lie before the next.
    """
    ends = (each.billed_until or each.ended_time for each in records if each.price_per_hour is not None)
    return max((end for end in ends if end is not None), default=otherwise)


def _placed(seen: AttemptSeen | None) -> list[ReplicaSeen]:
    return [replica for replica in seen.replicas if replica.placed_at is not None] if seen and seen.ours else []


def _moments(placed: Iterable[ReplicaSeen]) -> list[datetime]:
    return sorted(replica.placed_at for replica in placed if replica.placed_at is not None)


def _has_changed(record: AttemptStatus, placed: Sequence[ReplicaSeen]) -> bool:
    return record.billed_until is None and (record.price_per_hour is None or len(placed) > record.billed_machines)


def _price(placed: Iterable[ReplicaSeen], at_most: Fraction | None) -> Fraction | None:
    """Of all machines together, each by the share that is used of it; None where nobody knows that of one."""
    total = Fraction(0)
    for replica in placed:
        price = at_most if replica.node_price is None else replica.node_price
        if price is None:
            return None
        total += price * replica.node_share
    return total


def _priced(record: AttemptStatus, placed: Sequence[ReplicaSeen], price: Fraction, now: datetime) -> AttemptStatus:
    """The record with that price. What it has cost until more machines came is settled; they are paid from there on."""
    changes: dict[str, object] = {"billed_machines": len(placed)}
    if record.billed_from is not None and record.price_per_hour is not None:
        since = max(record.billed_from, min(_moments(placed)[record.billed_machines], now))
        changes |= {"billed_from": since, "billed_before": as_text(_of_attempt(record, since), _EXACT_DIGITS)}
        price = max(price, dollars(record.price_per_hour))
    return record.model_copy(update={**changes, "price_per_hour": as_text(price, _EXACT_DIGITS)})


def _share_of_lost_steps(status: RunStatus) -> Fraction:
    """The part of all steps that were trained again; they cost what the others did."""
    lost = status.lost.steps
    if not lost:
        return Fraction(0)
    steps = [record.step or 0 for record in status.attempts] + [status.progress.step or 0 if status.progress else 0]
    return Fraction(lost, lost + max(steps))


def _noted(status: RunStatus, **fields: object) -> RunStatus:
    return status.model_copy(update={"cost": (status.cost or CostStatus()).model_copy(update=fields)})


def _with(status: RunStatus, record: AttemptStatus) -> RunStatus:
    return status.model_copy(update={"attempts": (*status.attempts[:-1], record)})
