"""One pass over one object: observe, decide, apply, write the status, announce. The same for every world."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, cast

from piton.api.conditions import settled, without_words
from piton.api.reasons import Reason
from piton.api.status import RunStatus, Verdict
from piton.api.status_base import Conditioned
from piton.core import cleanup, effects, stuck_pods
from piton.core.answers import answer_alone
from piton.core.decide import decide, refused
from piton.core.effects import AddFinalizer, Announcement, AnyDecision, Decision, Effect, OwnVolume, TaintNode
from piton.failures import Failures
from piton.observed import Observed
from piton.ports import Announcer, AnyWorld, Clock, Conflict, PortError, Refused, RefusedEffect, Unavailable, World
from piton.timing import Timing


class HasStatus(Protocol):
    """The fields that every observation has."""

    @property
    def status(self) -> Conditioned:
        """The status as it was last written."""


ObservedT = TypeVar("ObservedT", bound=HasStatus)
EffectT = TypeVar("EffectT")
StatusT = TypeVar("StatusT", bound=Conditioned)

IDLE_SECONDS = 1.0
"""Least time until the next pass after one that did nothing and wrote nothing: the next would find the same."""
REPEATS_TOLD = 4
"""Passes in a row that had to carry out an effect again; then people are told."""
FAILURES_MOST = 3
"""Effects that may fail one after the other; then it is the world that is away, and no more of it is asked for."""


@dataclass(frozen=True, kw_only=True)
class PassRules(Generic[ObservedT, EffectT, StatusT]):
    """The rules of a pass over one kind of object."""

    decide: Callable[[ObservedT], AnyDecision[EffectT, StatusT]]
    answer: Callable[[ObservedT], AnyDecision[EffectT, StatusT]]
    """Return the answers to the spec, and nothing else: people hear that it was read, whatever fails."""
    turn_down: Callable[
        [ObservedT, AnyDecision[EffectT, StatusT], Sequence[RefusedEffect[EffectT]]], AnyDecision[EffectT, StatusT]
    ]
    """Return the decision for what was not carried out."""
    is_binding: Callable[[ObservedT, AnyDecision[EffectT, StatusT]], bool]
    depends: Callable[[EffectT, EffectT], bool]
    """True if the first must not be carried out after the second, which comes before it, was not."""
    stands_without: Callable[[RefusedEffect[EffectT]], bool]
    """True if the decision stands without that effect, so that its status is written."""
    name_of: Callable[[EffectT], str]
    """Return the name by which an effect is known from pass to pass."""


def is_binding(observed: Observed, decision: Decision) -> bool:
    """True if the decision cannot be taken back: it creates or deletes something, or an attempt or the run ends by it.

    Any other status is only written over the version that was observed, and the next pass corrects it.
    """
    acts = any(not isinstance(effect, AddFinalizer) for effect in (*decision.effects, *decision.optional_effects))
    return acts or _ends(decision.status) != _ends(observed.status)


def _ends(status: RunStatus) -> tuple[bool, list[tuple[int, Verdict | None, bool]]]:
    """The end of the run and of each attempt, as far as it has come: the first sign, the verdict."""
    signs = [(attempt.number, attempt.verdict, attempt.failing_time is not None) for attempt in status.attempts]
    return settled(status), [sign for sign in signs if sign[1] or sign[2]]


async def reconcile(
    world: World,
    clock: Clock,
    announcer: Announcer,
    timing: Timing | None = None,
    failures: Failures | None = None,
) -> Decision | None:
    """Do what this moment asks for a run; see `run_pass`."""

    def decided(observed: Observed) -> Decision:
        return decide(observed, now=clock.now(), timing=timing)

    def turned_down(observed: Observed, decision: Decision, undone: Sequence[RefusedEffect[Effect]]) -> Decision:
        told = next((each for each in undone if each.is_final), None)
        if told is None:
            return decision
        if isinstance(told.effect, OwnVolume) and told.effect in decision.optional_effects:
            volume, known = observed.volume.name, told.is_known
            return cleanup.note_refusal(decision, told.why, is_known=known, volume=volume, timing=timing or Timing())
        if told.effect in decision.optional_effects:
            return stuck_pods.note_refusal(decision, told.why, now=clock.now(), timing=timing or Timing())
        stands = all(each.effect in decision.optional_effects or _stands_without(each) for each in undone)
        status = decision.status if stands else decision.status_if_refused
        found = refused(observed, told.why, status=status, stands=stands, now=clock.now(), timing=timing)
        news = decision.announcements if stands else ()
        return replace(found, announcements=(*news, *found.announcements))

    rules = PassRules(
        decide=decided,
        answer=lambda observed: answer_alone(observed, now=clock.now(), timing=timing),
        turn_down=turned_down,
        is_binding=is_binding,
        depends=effects.depends,
        stands_without=_stands_without,
        name_of=effects.name_of,
    )
    return await run_pass(world, announcer, rules, Failures(clock) if failures is None else failures)


def _stands_without(undone: RefusedEffect[Effect]) -> bool:
    """True if the decision stands. A taint that cannot be put holds up no run, but it is tried for a while."""
    return effects.is_aside(undone.effect) or (undone.is_final and isinstance(undone.effect, TaintNode))


def independent(
    decide: Callable[[ObservedT], AnyDecision[EffectT, StatusT]],
    turn_down: Callable[
        [ObservedT, AnyDecision[EffectT, StatusT], Sequence[RefusedEffect[EffectT]]], AnyDecision[EffectT, StatusT]
    ],
    is_binding: Callable[[ObservedT, AnyDecision[EffectT, StatusT]], bool],
    name_of: Callable[[EffectT], str],
) -> PassRules[ObservedT, EffectT, StatusT]:
    """Return the rules for effects of which none builds on another: a decision stands without any of them."""
    return PassRules(
        decide=decide,
        answer=decide,  # no failure makes such a pass void
        turn_down=turn_down,
        is_binding=is_binding,
        depends=lambda *_: False,
        stands_without=lambda _: True,
        name_of=name_of,
    )


async def run_pass(
    world: AnyWorld[ObservedT, EffectT, StatusT],
    announcer: Announcer,
    rules: PassRules[ObservedT, EffectT, StatusT],
    failures: Failures,
) -> AnyDecision[EffectT, StatusT] | None:
    """Do what this moment asks for. Returns the decision, or None when the object does not exist.

    A crash anywhere in here is harmless: effects are idempotent, the status is written once and last, and what follows
    from it happens in the next pass. A decision that cannot be taken back is made again on live reads first, and only
    that second one counts: see docs/decisions/0058. Announcements may be lost in a crash, never told too early; those
    of a decision that changes nothing were told before.

    An effect that fails holds up those that depend on it, and no others. One that has failed for two minutes counts as
    refused, whatever the world's answer is: see docs/decisions/0071. Until then it may make the pass void: nothing of
    the decision is written but the answers to what the user asks for.

    Raises:
        Conflict: somebody wrote in between; call again at once.
        Unavailable: the world did not answer; call again later.
    """
    observed = await _observe(world, failures)
    if observed is None:
        return None
    decision = rules.decide(observed)
    if world.is_cached and rules.is_binding(observed, decision):
        observed = await _observe(world, failures, live=True)
        if observed is None:
            return None
        decision = rules.decide(observed)
    undone, error = await _apply(world, decision, rules, failures)
    left = {rules.name_of(each.effect) for each in undone}
    done = {rules.name_of(effect) for effect in (*decision.effects, *decision.optional_effects)} - left
    if error is not None:
        await _conclude(world, observed, rules.answer(observed), announcer, failures)
        raise error
    if undone:
        decision = rules.turn_down(observed, decision, undone)
    decision = _hold_words(observed, decision, failures)
    is_news = await _conclude(world, observed, decision, announcer, failures)
    again = decision.look_again_seconds
    is_idle = again is not None and again <= 0 and not is_news
    failures.record_done(done if is_idle else ())
    if failures.repeats == REPEATS_TOLD:
        await announcer.announce(_does_not_stay(failures.repeated))
    if is_idle and failures.repeated:
        again = failures.seconds_before_repeating()
    elif is_idle and not done:
        again = IDLE_SECONDS
    waits = [seconds for seconds in (again, failures.seconds_left()) if seconds is not None]
    return replace(decision, look_again_seconds=min(waits, default=None))


def _hold_words(
    observed: HasStatus, decision: AnyDecision[EffectT, StatusT], failures: Failures
) -> AnyDecision[EffectT, StatusT]:
    """Return the decision. One that only rewords the status does nothing until ten seconds after the last such write.

    The scheduler and the autoscaler may name different causes for one pod, in turn and every second.
    """
    before, after = observed.status, decision.status
    acts = decision.effects or decision.optional_effects
    if acts or before == after or without_words(before) != without_words(after):
        return decision
    early = failures.seconds_to_reword()
    if early == 0:
        failures.note_reworded()
        return decision
    again = early if decision.look_again_seconds is None else min(decision.look_again_seconds, early)
    return replace(decision, status=cast("StatusT", before), announcements=(), look_again_seconds=again)


def _does_not_stay(names: Sequence[str]) -> Announcement:
    message = (
        f"{', '.join(names)}: succeeded {REPEATS_TOLD + 1} times in a row and was undone each time; look for a "
        "mutating webhook or a controller that undoes it"
    )
    return Announcement(severity="Warning", reason=Reason.REFUSED, message=message)


async def _conclude(
    world: AnyWorld[ObservedT, EffectT, StatusT],
    observed: ObservedT,
    decision: AnyDecision[EffectT, StatusT],
    announcer: Announcer,
    failures: Failures,
) -> bool:
    """Write the status if it is another, then tell people. Returns whether it is."""
    is_news = decision.status != observed.status
    if is_news:
        await _write_status(world, decision.status, announcer, failures)
    for announcement in decision.announcements if is_news or decision.effects or decision.optional_effects else ():
        await announcer.announce(announcement)
    return is_news


async def _observe(
    world: AnyWorld[ObservedT, EffectT, StatusT], failures: Failures, *, live: bool = False
) -> ObservedT | None:
    """Observe. Since when that fails is remembered: whoever drives the passes tells people when it has lasted."""
    try:
        observed = await world.observe(live=live)
    except PortError as error:
        failures.note_look(str(error))
        raise
    failures.note_looked()
    return observed


async def _apply(
    world: AnyWorld[ObservedT, EffectT, StatusT],
    decision: AnyDecision[EffectT, StatusT],
    rules: PassRules[ObservedT, EffectT, StatusT],
    failures: Failures,
) -> tuple[list[RefusedEffect[EffectT]], PortError | None]:
    """Carry out the effects. Returns those that were not, and the error that makes the pass void, if there is one."""
    undone: list[RefusedEffect[EffectT]] = []
    void: PortError | None = None
    failed_in_a_row, tried = 0, False

    def stands_without(found: RefusedEffect[EffectT]) -> bool:
        return found.effect in decision.optional_effects or rules.stands_without(found)

    for effect in (*_in_order(decision.effects, rules, failures), *decision.optional_effects):
        name = rules.name_of(effect)
        waits = any(rules.depends(effect, other.effect) for other in undone) or failed_in_a_row == FAILURES_MOST
        untried = RefusedEffect(effect=effect, why="", is_final=False) if waits else _held_back(effect, name, failures)
        if untried is not None and (waits or stands_without(untried)):
            undone.append(untried)
            continue
        try:
            await world.apply(effect)
        except Refused as refusal:
            failures.forget(name)
            is_optional = effect in decision.optional_effects
            undone.append(_as_refused(effect, name, str(refusal), failures if is_optional else None))
            failed_in_a_row = 0
        except (Conflict, Unavailable) as error:
            tried, failed_in_a_row = True, failed_in_a_row + 1
            failures.note(name, str(error))
            found = RefusedEffect(effect=effect, why=str(error), is_final=failures.has_lasted(name))
            undone.append(found)
            if not found.is_final and not stands_without(found):
                void = void or error
        else:
            failures.forget(name)
            failures.forget_refusal(name)
            failed_in_a_row = 0
    names = {rules.name_of(each.effect) for each in undone}
    failures.end_pass(names, failed=tried, is_away=failed_in_a_row == FAILURES_MOST)
    return undone, void


def _held_back(effect: EffectT, name: str, failures: Failures) -> RefusedEffect[EffectT] | None:
    """Return the effect with the last words of the world, if it is too early for a retry; None if it may be tried."""
    if failures.is_refused(name):
        return RefusedEffect(effect=effect, why=failures.refusal(name), is_known=True)
    if failures.is_early(name):
        return RefusedEffect(effect=effect, why=failures.why(name), is_final=failures.has_lasted(name))
    return None


def _as_refused(effect: EffectT, name: str, why: str, failures: Failures | None) -> RefusedEffect[EffectT]:
    """Return the refusal of an effect. `failures` records that of an optional effect, and delays its next retry."""
    if failures is None:
        return RefusedEffect(effect=effect, why=why)
    is_known = failures.note_refusal(name, why)
    return RefusedEffect(effect=effect, why=failures.refusal(name), is_known=is_known)


def _in_order(
    wanted: Sequence[EffectT], rules: PassRules[ObservedT, EffectT, StatusT], failures: Failures
) -> list[EffectT]:
    """Return the effects with those last that failed before, where none builds on them: the others must get on."""

    def comes_last(effect: EffectT) -> bool:
        others = (other for other in wanted if other is not effect)
        return failures.why(rules.name_of(effect)) != "" and not any(rules.depends(each, effect) for each in others)

    return sorted(wanted, key=comes_last)


async def _write_status(
    world: AnyWorld[ObservedT, EffectT, StatusT], status: StatusT, announcer: Announcer, failures: Failures
) -> None:
    """Write the status. Where that fails for long, an Event says so: nothing else can."""
    try:
        await world.write_status(status)
    except PortError as error:
        if failures.note_status(isinstance(error, Refused)):
            message = f"the status cannot be written, so nothing is shown and nothing else begins: {error}"
            await announcer.announce(Announcement(severity="Warning", reason=Reason.REFUSED, message=message))
        raise
    failures.note_status_written()
