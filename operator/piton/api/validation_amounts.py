"""Rules on amounts of time and money: none of them may be zero, and a budget needs a price."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from piton.api.cel import Check, Decorator, SpecRule, cel, not_in_cel
from piton.api.spec import Budget, SideStage, Spec
from piton.contract import duration

ANY_DIGIT = "self.matches('[1-9]')"
"""CEL check that a duration or an amount is more than zero."""
WITHIN_YEARS = f"self.matches('{duration.WITHIN_YEARS}')"
"""CEL check that a duration is not longer than a run can last."""


@dataclass(frozen=True, kw_only=True)
class DurationField:
    """A duration in the spec, and what is said when it is out of bounds."""

    path: str
    value: Callable[[Spec], str | None]
    example: str | None = None
    """A good value; None where zero has a meaning: a run that is Stalled may hold at once."""
    instead_of_zero: str | None = None
    """Substitute for zero in new runs of a sweep from before zero was refused; None where zero has not changed."""

    @property
    def zero(self) -> str:
        """The message when it is zero, with `found` for its value."""
        return f"spec.{self.path}: '{{found}}' is no time at all; write a duration such as {self.example}"

    @property
    def too_long(self) -> str:
        """The message when it is longer than ten years, with `found` for its value."""
        return f"spec.{self.path}: '{{found}}' is too long; write at most {duration.LONGEST}, which is ten years"


def _hang_timeout(spec: Spec) -> str | None:
    return None if spec.limits.hang_timeout in ("auto", "off") else spec.limits.hang_timeout


DEADLINE = DurationField(path="limits.deadline", value=lambda spec: spec.limits.deadline, example="24h")
_WITH_CEL = (
    DEADLINE,
    DurationField(path="limits.trainingTime", value=lambda spec: spec.limits.training_time, example="24h"),
    DurationField(
        path="limits.startTimeout",
        value=lambda spec: spec.limits.start_timeout,
        example="30m",
        instead_of_zero=duration.LONGEST,
    ),
    DurationField(path="limits.stalled", value=lambda spec: spec.limits.stalled),
    DurationField(path="checkpoint.patience", value=lambda spec: spec.checkpoint.patience, example="1h"),
    DurationField(path="stages.prepare.deadline", value=lambda spec: _deadline(spec.stages.prepare), example="6h"),
    DurationField(path="stages.evaluate.deadline", value=lambda spec: _deadline(spec.stages.evaluate), example="6h"),
    DurationField(path="ttlAfterFinished", value=lambda spec: spec.ttl_after_finished, example="7d"),
)
_A_WORD = "limits.hangTimeout is a duration or a word, which a structural schema cannot say"
DURATIONS = (
    *_WITH_CEL,
    DurationField(path="limits.hangTimeout", value=_hang_timeout, example="30m", instead_of_zero="off"),
)


def _deadline(stage: SideStage | None) -> str | None:
    return stage.deadline if stage else None


def _in_each(
    fields: Sequence[DurationField], expression: str, message: Callable[[DurationField], str]
) -> Decorator[Spec]:
    """Add the CEL equivalent of the decorated rule at each of these fields."""

    def add(rule: Check[Spec] | SpecRule[Spec]) -> SpecRule[Spec]:
        for field in reversed(fields):
            rule = cel(f"spec.{field.path}", expression, message(field), found="self")(rule)
        return rule if isinstance(rule, SpecRule) else SpecRule(rule)

    return add


@_in_each(
    [field for field in _WITH_CEL if field.example and not field.instead_of_zero], ANY_DIGIT, lambda field: field.zero
)
def good_durations(spec: Spec) -> Iterator[str]:
    """Check that no duration is zero, of those that never could be."""
    yield from _zeros(spec, [field for field in DURATIONS if field.example and not field.instead_of_zero])


@_in_each([field for field in _WITH_CEL if field.instead_of_zero], ANY_DIGIT, lambda field: field.zero)
@not_in_cel(_A_WORD)
def good_timeouts(spec: Spec) -> Iterator[str]:
    """Check that no timeout is zero, of those that could be: runs that have begun train with them."""
    yield from _zeros(spec, [field for field in DURATIONS if field.instead_of_zero])


def _zeros(spec: Spec, fields: Sequence[DurationField]) -> Iterator[str]:
    for field in fields:
        text = field.value(spec)
        if text is not None and duration.parse_duration(text) <= 0:
            yield field.zero.format(found=text)


@_in_each(_WITH_CEL, WITHIN_YEARS, lambda field: field.too_long)
@not_in_cel(_A_WORD)
def bounded_durations(spec: Spec) -> Iterator[str]:
    """Check that no duration is longer than ten years."""
    for field in DURATIONS:
        text = field.value(spec)
        if text is not None and not re.fullmatch(duration.WITHIN_YEARS, text):
            yield field.too_long.format(found=text)


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


AMOUNTS = (good_durations, good_timeouts, bounded_durations, positive_budget, a_price)
"""Rules in the order of display."""
