"""Weights that ranks do not have alike are refused or told; buffers that they do not have alike are kept per rank."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import piton_trainer
from piton.contract import InputError
from piton_trainer.checkpoint.export import export
from piton_trainer.checkpoint.inspect import newest_good, survey
from piton_trainer.errors import BadConfig
from piton_trainer.state import agreement
from support import logged, ranks, resume, tiny
from support.checkpoints import sound_steps

STEPS, STOP = 12, 6


@dataclass
class Script:
    """What a script builds on a rank, and does in each step."""

    rank: int
    model: nn.Module
    extra: dict[str, Any] = field(default_factory=dict)
    after: Callable[[int], None] = lambda step: None
    """After the step of the optimizer."""
    per_rank: bool = False
    optimizer: type[torch.optim.SGD] = torch.optim.SGD


def attempt(directory: Path, make: Callable[[int], Script], *, stop: bool = False) -> dict[str, Any]:
    """Return the losses of a rank, its state in the end, what it logged and how it was refused."""
    lines = logged.warnings_from_now_on()
    losses: dict[int, float] = {}
    script = None
    refused = ""
    try:
        with piton_trainer.session(tiny.config(directory)) as session:
            torch.manual_seed(0)
            script = make(session.rank)
            optimizer = script.optimizer(script.model.parameters(), lr=0.05, momentum=0.9)
            session.restore(per_rank=script.per_rank, model=script.model, optimizer=optimizer, **script.extra)
            for x in session.steps(batches(session.rank), epochs=1):
                loss = (script.model(x) - x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                script.after(session.step + 1)
                losses[session.step + 1] = float(loss.detach())
                if stop and session.step + 1 == STOP:
                    tiny.terminate(session)
    except BadConfig as error:
        refused = str(error)
    except SystemExit as end:
        assert end.code == 143, end  # noqa: PT017
    assert script is not None
    state = {key: value.tolist() for key, value in script.model.state_dict().items() if type(value) is Tensor}
    return {"losses": losses, "state": state, "lines": lines, "refused": refused}


def batches(rank: int) -> list[Tensor]:
    return [torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + n)) + rank for n in range(STEPS)]


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))


def norms() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))


def alone(rank: int) -> Script:
    """Train on each rank for itself, as after a forgotten DistributedDataParallel."""
    return Script(rank, plain())


def stages(rank: int) -> Script:
    """Train stages of a pipeline, with keys of their own."""
    return Script(rank, nn.Sequential(nn.Identity(), *plain()) if rank else plain())


def shapes(rank: int) -> Script:
    """Train experts of different sizes."""
    return Script(rank, nn.Sequential(nn.Linear(4, 6 + rank), nn.Linear(6 + rank, 4)))


def types(rank: int) -> Script:
    """Train in another precision on one rank."""
    model = plain()
    model[2].register_parameter("more", nn.Parameter(torch.zeros(3, dtype=torch.float64 if rank else torch.float32)))
    return Script(rank, model)


def average_of_rank_0(rank: int) -> Script:
    """Keep an average of the weights that rank 0 alone updates."""
    model = DistributedDataParallel(plain())
    ema = torch.optim.swa_utils.AveragedModel(model.module)
    return Script(rank, model, {"ema": ema}, lambda step: None if rank else ema.update_parameters(model.module))


def object_of_rank_1(rank: int) -> Script:
    """Name a module on rank 1 only."""
    return Script(rank, DistributedDataParallel(plain()), {"head": nn.Linear(2, 2) if rank else None})


class Feedback(torch.optim.SGD):
    """An optimizer that remembers something of the batches of its rank, as compression of gradients does."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for parameter, state in self.state.items():
            state["error"] = torch.full_like(parameter, torch.distributed.get_rank())
        return result


def feedback(rank: int) -> Script:
    """Keep momenta that are each rank's own."""
    return Script(rank, DistributedDataParallel(plain()), optimizer=Feedback)


@resume.refused(
    "ranks: other weights under equal keys, or other keys",
    "a checkpoint holds one of each; wrap in DDP, or say per_rank=True",
)
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (alone, "model: model/0.weight has other values on rank 1 than on rank 0, and so do 3 more;"),
        (stages, "model: rank 1 has model/1.bias, which rank 0 lacks"),
        (
            shapes,
            "model: model/0.weight is torch.float32 [6, 4] on rank 0 and torch.float32 [7, 4] on rank 1",
        ),
        (types, "model: model/2.more is torch.float32 [3] on rank 0 and torch.float64 [3] on rank 1"),
        (average_of_rank_0, "ema: ema/module.0.weight"),
        (object_of_rank_1, "head: rank 1 has it and rank 0 has not"),
        (feedback, "optimizer: optimizer/0/state/0.weight/error"),
    ],
)
def test_weights_that_differ_are_refused_after_the_first_step(
    make: Callable[[int], Script], sentence: str, tmp_path: Path
) -> None:
    ends = ranks.run(2, partial(attempt, tmp_path, make))
    for end in ends:
        assert end.result["refused"].startswith(f"nothing could resume from a checkpoint of this: {sentence}")
        assert list(end.result["losses"]) == [1]
    assert sound_steps(tmp_path) == []


def leaves(step: int, rank: int) -> Script:
    """Leave the other rank's weights behind in a step, as where DDP does not see a parameter any more."""
    inner = plain()
    script = Script(rank, DistributedDataParallel(inner))
    weight = inner[0].weight
    assert isinstance(weight, Tensor)

    def drift(now: int) -> None:
        if now >= step and rank:
            weight.data.add_(0.1)

    script.after = drift
    return script


def test_weights_that_differ_in_the_first_save_are_refused(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(attempt, tmp_path, partial(leaves, 3)))
    assert ["model: model/0.weight has other values" in end.result["refused"] for end in ends] == [True, True]
    assert sound_steps(tmp_path) == []


@resume.approximate("ranks: weights that differ later", "what is saved is any rank's")
def test_weights_that_differ_later_are_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "PARTS", 2)
    main, other = ranks.run(2, partial(attempt, tmp_path, partial(leaves, 5)))
    assert (main.result["refused"], list(main.result["losses"])[-1]) == ("", STEPS)
    told = [line for line in main.result["lines"] if "has other values on rank 1" in line]
    assert len(told) == 1
    assert other.result["lines"] == []


def test_a_run_that_has_resumed_is_told_and_goes_on(tmp_path: Path) -> None:
    ranks.run(2, partial(attempt, tmp_path, partial(leaves, STEPS + 1), stop=True))
    main, _ = ranks.run(2, partial(attempt, tmp_path, alone))
    assert (main.result["refused"], list(main.result["losses"])[-1]) == ("", STEPS)
    assert any("model/0.weight" in line and "training goes on" in line for line in main.result["lines"])


def average_on_rank_0(rank: int) -> Script:
    """Have an average of the weights on rank 0 only."""
    model = DistributedDataParallel(plain())
    if rank:
        return Script(rank, model)
    ema = torch.optim.swa_utils.AveragedModel(model.module)
    return Script(rank, model, {"ema": ema}, lambda step: ema.update_parameters(model.module))


class Tracker:
    """An object that one rank has."""

    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def tracker_on(owner: int, rank: int) -> Script:
    """Have an object on one rank only."""
    model, tracker = DistributedDataParallel(norms()), Tracker()

    def count(step: int) -> None:
        tracker.seen += 1
        assert tracker.seen == step or rank != owner

    return Script(rank, model, {"tracker": tracker if rank == owner else None}, count)


class Gathered(Tracker):
    """An object whose state is gathered on rank 0."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if torch.distributed.get_rank() == 0 else {}


def gathered(rank: int) -> Script:
    """Have an object that says its state on rank 0 only, and takes it on all."""
    model, tracker = DistributedDataParallel(plain()), Gathered()

    def count(step: int) -> None:
        tracker.seen += 1
        assert tracker.seen == step

    return Script(rank, model, {"tracker": tracker}, count)


def buffers_of_its_own(rank: int) -> Script:
    """Keep running statistics of the rank's own batches."""
    return Script(rank, DistributedDataParallel(norms(), forward_sync_buffers=False))


def compiled(rank: int) -> Script:
    """Keep them in a model that torch.compile wraps."""
    model = DistributedDataParallel(norms(), forward_sync_buffers=False)
    return Script(rank, torch.compile(model, backend="eager"))  # type: ignore[arg-type]


def sharded(rank: int) -> Script:
    """Keep them in a model whose parameters are sharded."""
    model = norms()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return Script(rank, model)


class Drawn(nn.Linear):
    """A module with a state of its rank's own that is no tensor."""

    def __init__(self, rank: int) -> None:
        super().__init__(4, 4)
        self.count = rank

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x) + 0.01 * self.count

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


def extra_state(rank: int) -> Script:
    """Count per rank."""
    return Script(rank, DistributedDataParallel(Drawn(10 * rank), forward_sync_buffers=False))


@resume.exact("ranks: BatchNorm of each rank's own, FSDP2 with BatchNorm, extra states, objects of one rank")
@pytest.mark.parametrize(
    "make",
    [
        average_on_rank_0,
        partial(tracker_on, 0),
        partial(tracker_on, 1),
        gathered,
        buffers_of_its_own,
        compiled,
        sharded,
        extra_state,
    ],
)
def test_what_each_rank_has_of_its_own_comes_back_to_it(make: Callable[[int], Script], tmp_path: Path) -> None:
    whole = ranks.run(2, partial(attempt, tmp_path / "whole", make))
    ranks.run(2, partial(attempt, tmp_path / "disturbed", make, stop=True))
    resumed = ranks.run(2, partial(attempt, tmp_path / "disturbed", make))
    for there, here in zip(whole, resumed, strict=True):
        late = {step: loss for step, loss in there.result["losses"].items() if step > STOP}
        assert (here.result["refused"], here.result["lines"]) == ("", [])
        assert here.result["losses"] == late
    differing = [key for key, value in resumed[0].result["state"].items() if value != resumed[1].result["state"][key]]
    for there, here in zip(whole, resumed, strict=True):
        assert {key: here.result["state"][key] for key in differing} == {
            key: there.result["state"][key] for key in differing
        }


PER_RANK = [alone, stages, shapes, average_of_rank_0, object_of_rank_1, feedback, partial(leaves, 5)]


def per_rank(make: Callable[[int], Script], rank: int) -> Script:
    """Say that each rank has weights of its own."""
    script = make(rank)
    script.per_rank = True
    return script


@resume.exact("ranks: weights of each rank's own with per_rank=True", "pipeline stages, experts, local SGD")
@pytest.mark.parametrize("make", PER_RANK)
def test_each_rank_gets_its_own_weights_where_the_script_says_so(make: Callable[[int], Script], tmp_path: Path) -> None:
    whole = ranks.run(2, partial(attempt, tmp_path / "whole", partial(per_rank, make)))
    ranks.run(2, partial(attempt, tmp_path / "disturbed", partial(per_rank, make), stop=True))
    resumed = ranks.run(2, partial(attempt, tmp_path / "disturbed", partial(per_rank, make)))
    for there, here in zip(whole, resumed, strict=True):
        late = {step: loss for step, loss in there.result["losses"].items() if step > STOP}
        assert here.result == {**there.result, "losses": late}
    assert list(whole[0].result["losses"]) == list(range(1, STEPS + 1))


@resume.refused("ranks: another number of them with per_rank=True", "nobody has the weights of a new rank")
@pytest.mark.parametrize("after", [1, 3])
def test_weights_of_ranks_of_their_own_are_not_for_another_number_of_ranks(after: int, tmp_path: Path) -> None:
    ranks.run(2, partial(attempt, tmp_path, partial(per_rank, alone), stop=True))
    ends = ranks.run(after, partial(attempt, tmp_path, partial(per_rank, alone)))
    sentence = "it was saved by 2 ranks, each with weights of its own (per_rank=True)"
    assert [sentence in end.result["refused"] for end in ends] == [True] * after


def test_shards_are_no_weights_of_a_rank_of_its_own(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(attempt, tmp_path, partial(per_rank, sharded)))
    assert ["model/0.weight is spread over ranks" in end.result["refused"] for end in ends] == [True, True]


def test_an_export_is_of_one_model(tmp_path: Path) -> None:
    ranks.run(2, partial(attempt, tmp_path, partial(per_rank, alone), stop=True))
    found = newest_good(survey(tmp_path))
    assert found is not None
    assert found.manifest is not None
    with pytest.raises(InputError, match="each of 2 ranks has weights of its own"):
        export(found.folder, found.manifest, tmp_path / "model", kind="safetensors", weights="model")


@resume.approximate("ranks: another number of them, with buffers of each rank's own", "all go on with rank 0's")
@pytest.mark.parametrize("after", [1, 3])
def test_another_number_of_ranks_has_the_buffers_of_rank_0(after: int, tmp_path: Path) -> None:
    stopped = ranks.run(2, partial(attempt, tmp_path, buffers_of_its_own, stop=True))
    seen = ranks.run(after, partial(restored, tmp_path))
    mean = stopped[0].result["state"]["module.1.running_mean"]
    assert mean != stopped[1].result["state"]["module.1.running_mean"]
    assert [end.result[0] for end in seen] == [mean] * after
    told = f"model: each of 2 ranks has buffers of its own in the checkpoint, and there are {after} ranks now"
    assert [any(line.startswith(told) for line in end.result[1]) for end in seen] == [True] + [False] * (after - 1)


def restored(directory: Path) -> tuple[list[float], list[str]]:
    """Return the mean that a rank resumes with, and what it logs."""
    lines = logged.warnings_from_now_on()
    with piton_trainer.session(tiny.config(directory)) as session:
        model = norms()
        session.restore(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        for _ in session.steps(batches(0), epochs=1):
            break
        return model.state_dict()["1.running_mean"].tolist(), lines


def test_numbers_that_begin_in_the_middle_of_a_word_are_summed() -> None:
    whole = torch.arange(20, dtype=torch.float32)
    parts = {"a": whole[1:], "b": whole[1:].clone(), "c": whole[2:].to(torch.bfloat16)[1:], "d": torch.empty(0)}
    found = agreement.contents(parts, parts)
    assert found["a"] == found["b"]
    assert found["c"].total != found["a"].total
    assert found["d"].total == 0
