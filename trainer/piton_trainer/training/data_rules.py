"""Rules for the data of a resume: exact, begun anew because the script says so, or refused.

    a loader whose place nobody can know     refused when a run begins on Piton, warned of elsewhere
    the same with on_resume="restart_epoch"  taken; each resume in the middle of an epoch begins it anew, and says so
    a checkpoint without a loader's state    between two epochs taken, in the middle of one as above
    another batch size or data length        refused in the middle of an epoch, or taken with allow=

A run that is under way is never refused by a rule that its first attempt did not have.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Generator, nn

from piton.contract import InputError
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.batch_skipping import RESTART_EPOCH, caveat, has_state, unknown_place
from piton_trainer.state.data_position import Randomness, ResumableLoader, Resume, length_of
from piton_trainer.state.data_shape import DataShape, differences
from piton_trainer.state.epoch_end import EpochEnd
from piton_trainer.state.own_generators import RNG, OwnGenerators, named_generators
from piton_trainer.state.refusals import Stateful
from piton_trainer.state.samplers import Attributes, Samplers, attributes, may_be_sampler
from piton_trainer.state.tracked_objects import LOADER
from piton_trainer.state.train_state import TrainState

logger = logging.getLogger(__name__)

_LACKS_STATE = "loader: the checkpoint has no state of it"


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """The words of a script for its data: how long it is gone through, and what a resume may do."""

    epochs: int = 1
    total: int | None = None
    """Steps overall instead, or of a loop that is not ours."""
    on_resume: str | None = None
    allow: Collection[str] = ()
    is_between: bool = False
    """True if a loop that is not ours begins with the start of an epoch, and with other data than the one before."""

    def __post_init__(self) -> None:
        """Refuse a word that means nothing.

        Raises:
            ValueError: it does not.
        """
        if self.on_resume not in (None, RESTART_EPOCH):
            raise InputError(f'on_resume: {self.on_resume!r} is not known; write "{RESTART_EPOCH}", or leave it out')


class DataRules:
    """Makes the feed of a loop, unless a rule refuses its data."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._ranks = ranks
        self._begins_on_piton = config.attempt is not None and config.durable_step is None
        self._modules: dict[str, nn.Module] = {}
        self._rng: dict[str, Any] = {}
        self._made: dict[int, Attributes] = {}
        """Attributes of what may be a sampler before it is restored, by `id`; until the loader is known."""
        self._loader: Any = None

    def take(self, objects: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take what belongs to the data from the user's objects; return the objects that are saved by themselves."""
        self._modules = {name: value for name, value in objects.items() if isinstance(value, nn.Module)}
        self._loader = objects.get(LOADER)
        for value in filter(may_be_sampler, objects.values()):
            if id(value) not in self._made:
                self._made[id(value)] = attributes(value)
        rng = objects.get(RNG)
        if isinstance(rng, Stateful):
            return objects
        self._rng = named_generators(rng)
        return {name: value for name, value in objects.items() if name != RNG or isinstance(rng, Generator)}

    def feed(
        self, loader: Iterable[Any], feeding: Feeding, *, is_given: bool, state: TrainState, resume: Resume | None
    ) -> ResumableLoader:
        """Return the epochs of a loader. All ranks call it together.

        `is_given`: it has state, which is saved.

        Raises:
            BadConfig: the run cannot go on with it.
        """
        if has_state(loader) and not is_given:
            raise InputError("this loader has state; name it in session.restore(loader=...) too")

        def check() -> int | None:
            is_between = state.position.batch in (0, state.position.batches)
            self._check_place(loader, feeding, is_given=is_given, state=state, resume=resume)
            self._check_shapes([loader], feeding.allow, is_between=is_between, state=state, resume=resume)
            length, before = length_of(loader), state.position.batches
            if resume is not None and resume.shapes is None and not resume.is_of_other_ranks and length and before:
                self._tell_of_other_length(before, length)
            return length

        lengths = self._ranks.together(check)
        is_uneven = self._ranks.world_size > 1 and (None in lengths or len(set(lengths)) > 1)
        return ResumableLoader(
            loader,
            state.position,
            replay=not is_given,
            resume=resume,
            own=self._own([loader]),
            samplers=self._take_samplers([loader]),
            together=EpochEnd(self._ranks, self.tell).batches if is_uneven else iter,
        )

    def randomness(
        self,
        generators: Sequence[Generator],
        loaders: Sequence[object],
        feeding: Feeding,
        *,
        state: TrainState,
        resume: Resume | None,
    ) -> Randomness:
        """Return the random numbers of a loop that is not ours. All ranks call it together.

        Raises:
            BadConfig: its data is not that of the checkpoint.
        """
        if has_state(self._loader) and resume is not None and not resume.has_loader:
            raise BadConfig(f"{_LACKS_STATE}, and how far the loop is in its data is not known; begin a new run")
        is_between = feeding.is_between
        check = partial(self._check_shapes, loaders, feeding.allow, is_between=is_between, state=state, resume=resume)
        self._ranks.together(check)
        own, samplers = self._own(loaders), self._take_samplers(loaders)
        return Randomness(generators, resume, own=own, samplers=samplers, loaders=loaders)

    def tell(self, text: str) -> None:
        """Say something to the user, on one rank."""
        if self._ranks.is_main:
            logger.warning(text)

    def _tell_of_other_length(self, before: int, now: int) -> None:
        """Say what can be said of a checkpoint that an older trainer made."""
        if before != now:
            self.tell(
                f"loader: an epoch had {before} batches at the save and has {now}; an epoch under way goes on at the "
                "same share of it"
            )

    def _own(self, loaders: Sequence[object]) -> OwnGenerators:
        return OwnGenerators(loaders=loaders, modules=self._modules, named=self._rng)

    def _take_samplers(self, loaders: Sequence[object]) -> Samplers:
        made, self._made = self._made, {}  # a replay buffer may look like a sampler, and is large
        return Samplers(loaders, made)

    def _check_place(
        self, loader: Iterable[Any], feeding: Feeding, *, is_given: bool, state: TrainState, resume: Resume | None
    ) -> None:
        """Judge whether a run can go on with this loader; begin the epoch anew where the script says so.

        Raises:
            BadConfig: it cannot.
        """
        reason = None if is_given else unknown_place(loader)
        position, is_lacking = state.position, is_given and resume is not None and not resume.has_loader
        if (reason or is_lacking) and position.batch and position.batch == length_of(loader):
            position.epoch, position.batch = position.epoch + 1, 0  # all of it is done
        if position.batch and (reason or is_lacking):
            if feeding.on_resume == RESTART_EPOCH:
                self.tell(
                    f"loader: epoch {position.epoch} begins anew, as on_resume says; {position.batch} batches of it "
                    "have been trained already"
                )
                position.batch = 0
            elif is_lacking:
                raise BadConfig(
                    f"{_LACKS_STATE}, and is in the middle of an epoch, after batch {position.batch}; go on with the "
                    f'loader of then, or say session.steps(loader, on_resume="{RESTART_EPOCH}"), which begins that '
                    "epoch anew"
                )
        elif reason and feeding.on_resume is None:
            if self._begins_on_piton and resume is None:
                raise BadConfig(reason)
            self.tell(reason)
        elif not is_given and (limits := caveat(loader)):
            self.tell(limits)

    def _check_shapes(
        self,
        loaders: Sequence[object],
        allow: Collection[str],
        *,
        is_between: bool,
        state: TrainState,
        resume: Resume | None,
    ) -> None:
        """Compare the data with that of the checkpoint. Between two epochs other data may come.

        Raises:
            BadConfig: it is other data, and the script does not allow that.
        """
        saved = None if resume is None else resume.shapes
        for now, before in zip(DataShape.of(loaders), saved or (), strict=False):
            differing = differences(now, before)
            if not differing:
                continue
            text = ", and ".join(f"{name} was {old} at the save and is {new}" for name, (old, new) in differing.items())
            if state.compares_data and not is_between and (missing := sorted(differing.keys() - set(allow))):
                raise BadConfig(
                    f"loader: {text}, so rows of an epoch would be trained twice or not at all; give it what it had, "
                    f"or say allow={missing!r} in session.steps or PitonCallback"
                )
            goes_on = "the next epoch has it" if is_between else "the epoch under way goes on at the same share of it"
            self.tell(f"loader: {text}; {goes_on}")
