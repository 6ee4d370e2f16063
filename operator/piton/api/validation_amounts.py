"""Rules on amounts of time and money: none of them may be zero, and a budget needs a price."""

import re
from collections.abc import Iterator

from piton.api.cel import cel, not_in_cel
from piton.api.spec import Budget, Spec
from piton.contract import duration

ANY_DIGIT = "self.matches('[1-9]')"
"""CEL check that a duration or an amount is more than zero."""
NO_TIME = "spec.{path}: '{{found}}' is no time at all; write a duration such as {fix}"
DEADLINE, TRAINING_TIME, PATIENCE, PREPARE_DEADLINE, EVALUATE_DEADLINE, TTL = (
    NO_TIME.format(path=path, fix=fix)
    for path, fix in (
        ("limits.deadline", "24h"),
        ("limits.trainingTime", "24h"),
        ("checkpoint.patience", "1h"),
        ("stages.prepare.deadline", "6h"),
        ("stages.evaluate.deadline", "6h"),
        ("ttlAfterFinished", "7d"),
    )
)


@cel("spec.limits.deadline", ANY_DIGIT, DEADLINE, found="self")
@cel("spec.limits.trainingTime", ANY_DIGIT, TRAINING_TIME, found="self")
@cel("spec.checkpoint.patience", ANY_DIGIT, PATIENCE, found="self")
@cel("spec.stages.prepare.deadline", ANY_DIGIT, PREPARE_DEADLINE, found="self")
@cel("spec.stages.evaluate.deadline", ANY_DIGIT, EVALUATE_DEADLINE, found="self")
@cel("spec.ttlAfterFinished", ANY_DIGIT, TTL, found="self")
def good_durations(spec: Spec) -> Iterator[str]:
    """Check that no duration is zero."""
    prepare, evaluate = spec.stages.prepare, spec.stages.evaluate
    for message, text in (
        (DEADLINE, spec.limits.deadline),
        (TRAINING_TIME, spec.limits.training_time),
        (PATIENCE, spec.checkpoint.patience),
        (PREPARE_DEADLINE, prepare.deadline if prepare else None),
        (EVALUATE_DEADLINE, evaluate.deadline if evaluate else None),
        (TTL, spec.ttl_after_finished),
    ):
        if text is not None and duration.parse_duration(text) <= 0:
            yield message.format(found=text)


WITHIN_YEARS = f"self.matches('{duration.WITHIN_YEARS}')"
"""CEL check that a duration is not longer than a run can last."""
TOO_LONG = "spec.{path}: '{{found}}' is too long; write at most 3650d, which is ten years"
(
    LONG_DEADLINE,
    LONG_TRAINING,
    LONG_START,
    LONG_STALLED,
    LONG_PATIENCE,
    LONG_PREPARE,
    LONG_EVALUATE,
    LONG_TTL,
    LONG_HANG,
) = (
    TOO_LONG.format(path=path)
    for path in (
        "limits.deadline",
        "limits.trainingTime",
        "limits.startTimeout",
        "limits.stalled",
        "checkpoint.patience",
        "stages.prepare.deadline",
        "stages.evaluate.deadline",
        "ttlAfterFinished",
        "limits.hangTimeout",
    )
)


@cel("spec.limits.deadline", WITHIN_YEARS, LONG_DEADLINE, found="self")
@cel("spec.limits.trainingTime", WITHIN_YEARS, LONG_TRAINING, found="self")
@cel("spec.limits.startTimeout", WITHIN_YEARS, LONG_START, found="self")
@cel("spec.limits.stalled", WITHIN_YEARS, LONG_STALLED, found="self")
@cel("spec.checkpoint.patience", WITHIN_YEARS, LONG_PATIENCE, found="self")
@cel("spec.stages.prepare.deadline", WITHIN_YEARS, LONG_PREPARE, found="self")
@cel("spec.stages.evaluate.deadline", WITHIN_YEARS, LONG_EVALUATE, found="self")
@cel("spec.ttlAfterFinished", WITHIN_YEARS, LONG_TTL, found="self")
@not_in_cel("limits.hangTimeout is a duration or a word, which a structural schema cannot say")
def bounded_durations(spec: Spec) -> Iterator[str]:
    """Check that no duration is longer than ten years."""
    prepare, evaluate, limits = spec.stages.prepare, spec.stages.evaluate, spec.limits
    for message, text in (
        (LONG_DEADLINE, limits.deadline),
        (LONG_TRAINING, limits.training_time),
        (LONG_START, limits.start_timeout),
        (LONG_STALLED, limits.stalled),
        (LONG_PATIENCE, spec.checkpoint.patience),
        (LONG_PREPARE, prepare.deadline if prepare else None),
        (LONG_EVALUATE, evaluate.deadline if evaluate else None),
        (LONG_TTL, spec.ttl_after_finished),
        (LONG_HANG, None if limits.hang_timeout in ("auto", "off") else limits.hang_timeout),
    ):
        if text is not None and not re.fullmatch(duration.WITHIN_YEARS, text):
            yield message.format(found=text)


NO_MONEY = "spec.limits.budget.usd: '{usd}' buys nothing; write a positive amount of dollars, such as \"250\""


@cel("spec.limits.budget.usd", ANY_DIGIT, NO_MONEY, usd="self")
def positive_budget(spec: Spec) -> Iterator[str]:
    """Check that the budget of the run is more than zero."""
    if spec.limits.budget:
        yield from positive(spec.limits.budget)


def positive(budget: Budget) -> Iterator[str]:
    """Check that a budget is more than zero."""
    if float(budget.usd) <= 0:
        yield NO_MONEY.format(usd=budget.usd)


FREE_NODE = "spec.capacity.maxPricePerHour: '{price}' gets no node; write what you pay for one, such as \"12.50\""
NO_PRICE = (
    "spec.capacity.maxPricePerHour: missing; limits.budget counts with it where nobody knows what a node costs; "
    'write the most that you pay for a node per hour, such as "12.50"'
)


@cel("spec.capacity.maxPricePerHour", ANY_DIGIT, FREE_NODE, price="self")
@cel("spec", "!has(self.limits) || !has(self.limits.budget) || self.?capacity.?maxPricePerHour.hasValue()", NO_PRICE)
def a_price(spec: Spec) -> Iterator[str]:
    """Check that a budget has a maximum price, which is used for nodes of unknown price."""
    price = spec.capacity.max_price_per_hour
    if price is not None and float(price) <= 0:
        yield FREE_NODE.format(price=price)
    if spec.limits.budget and price is None:
        yield NO_PRICE


AMOUNTS = (good_durations, bounded_durations, positive_budget, a_price)
"""Rules in the order of display."""
