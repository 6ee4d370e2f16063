"""What would not come back from a checkpoint is refused after the first step, and all else comes back as it was."""

import enum
import io
import warnings
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import piton_trainer
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.load import read_back
from piton_trainer.checkpoint.save.blocking_save import BlockingCheckpointer
from piton_trainer.errors import BadConfig, Stopped
from support import ranks, resume, tiny
from support.subclasses import EightBit, Named, eight_bits, in_rows, ragged

STEPS, STOP = 9, 5
Body = Callable[[piton_trainer.Session, dict[str, Any]], None]


class State:
    """An object of the user's that says what it is told to say."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Anew(State):
    """It makes its state anew whenever it is asked."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave it as it is."""


def stop_at(step: int) -> Body:
    def stop(session: piton_trainer.Session, _: Any) -> None:
        if session.step + 1 == step:
            tiny.terminate(session)

    return stop


class Extra(nn.Linear):
    """A module with a state that is no tensor."""

    def __init__(self, extra: Any) -> None:
        super().__init__(4, 4)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class EightBitSGD(SGD):
    """Momenta in 8 bits."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("momentum", EightBit(parameter.grad))
        return super().step(closure)


class Mode(enum.Enum):
    """What torch has no tensor for."""

    TRAIN = "train"


class Level(enum.IntEnum):
    """A number with a name."""

    LOW = 1


class Silent(State):
    """It fails when it is asked."""

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError("say it later")


def net(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *more)


def with_buffer(make: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = net()
        model.register_buffer("mask", make())
        return model

    return build


def adam(model: nn.Module) -> Optimizer:
    return AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)


def eight_bit_weights() -> nn.Module:
    model = net(nn.Linear(4, 4))
    frozen: Any = model[1]
    frozen.weight = nn.Parameter(EightBit(frozen.weight.detach()), requires_grad=False)
    return model


def lazy() -> nn.Module:
    return net(nn.LazyLinear(4))


def attempt(
    directory: Path,
    build: Callable[[], nn.Module] = net,
    make: Callable[[nn.Module], Any] = adam,
    objects: Callable[[], dict[str, Any]] = dict,
    body: Body = lambda session, objects: None,
    *,
    trained: list[int] | None = None,
    every: int = 2,
    background: bool = False,
) -> dict[str, Any]:
    """Return what a training has in the end."""
    data = [torch.randn(6, 4, generator=torch.Generator().manual_seed(step)) for step in range(STEPS)]
    with piton_trainer.session(tiny.config(directory, tiny.every(every), background_saves=background)) as session:
        model = build()
        optimizer, extra = make(model), objects()
        session.restore(model=model, optimizer=optimizer, **extra)
        for x in session.steps(data, epochs=1):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            body(session, extra)
            if trained is not None:
                trained.append(session.step + 1)
        return {"model": model.state_dict(), **extra}


class Growing(nn.Sequential):
    """A model that gets another layer, or one less."""

    def change(self, *, grows: bool) -> None:
        if grows:
            self.append(nn.Linear(4, 4))
        else:
            self.pop(1)


@resume.approximate(
    "modules: parts that a script adds or removes in the middle", "told; the resumed script builds them"
)
@pytest.mark.parametrize(
    ("grows", "words"), [(True, "model also has 2.bias and 1 more"), (False, "model lacks 1.bias")]
)
def test_a_model_that_is_built_otherwise_in_the_middle_is_told_of(
    grows: bool, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Growing(nn.Linear(4, 4), nn.Linear(4, 4))

    def body(session: piton_trainer.Session, _: Any) -> None:
        if session.step == 3:
            model.change(grows=grows)

    model: Any = build()
    attempt(tmp_path, lambda: model, lambda model: SGD(model.parameters(), 0.1), body=body)
    assert words in caplog.text
    assert "a resumed script has to build it as it is now before session.restore()" in caplog.text


def without_state(directory: Path) -> int:
    """Train beside modules that have no state; return the steps that were taken."""
    trained: list[int] = []
    modules = {"criterion": nn.CrossEntropyLoss(), "shape": nn.Sequential(nn.Flatten(), nn.ReLU())}
    attempt(directory, objects=lambda: modules, trained=trained)
    return len(trained)


def test_a_module_without_state_such_as_a_loss_is_no_reason_to_end(tmp_path: Path) -> None:
    assert without_state(tmp_path / "one") == STEPS
    for steps in (STEPS, 0):
        assert [end.result for end in ranks.run(2, partial(without_state, tmp_path / "two"))] == [steps] * 2


@resume.exact(
    "modules: a metric of torchmetrics that is persistent, a loss without state",
    "except a mean over calls, whose count torchmetrics does not save",
)
def test_a_metric_that_says_its_values_has_them_again(tmp_path: Path) -> None:
    def values(stops: Body, directory: Path) -> Any:
        metric = torchmetrics.MeanMetric()
        metric.persistent(mode=True)

        def body(session: piton_trainer.Session, objects: Any) -> None:
            objects["mean"].update(torch.tensor(float(session.step)))
            stops(session, objects)

        return attempt(directory, objects=lambda: {"mean": metric, "loss": nn.MSELoss()}, body=body)["mean"].compute()

    with pytest.raises(Stopped):
        values(stop_at(STOP), tmp_path)
    assert values(lambda *_: None, tmp_path) == sum(range(STEPS)) / STEPS


FORGETFUL: dict[str, Callable[[], Any]] = {
    "one": torchmetrics.MeanMetric,
    "a collection": lambda: torchmetrics.MetricCollection([torchmetrics.MeanMetric(), torchmetrics.SumMetric()]),
    "a sum of two": lambda: torchmetrics.MeanMetric() + torchmetrics.SumMetric(),
}


@resume.refused("modules: a metric of torchmetrics that is not persistent", "its state is empty; say persistent(True)")
@pytest.mark.parametrize("make", FORGETFUL.values(), ids=FORGETFUL)
def test_a_metric_that_leaves_its_values_out_is_refused_after_the_first_step(make: Any, tmp_path: Path) -> None:
    trained: list[int] = []
    with pytest.raises(BadConfig, match=r"leaves its values out of its state; say mean.persistent\(True\)"):
        attempt(tmp_path, objects=lambda: {"mean": make()}, trained=trained)
    assert len(trained) <= 1
    metric = make()
    metric.persistent(True)
    attempt(tmp_path / "persistent", objects=lambda: {"mean": metric})


CURES: dict[str, tuple[Callable[[], Any], str]] = {
    "the least and the largest": (
        lambda: torchmetrics.MinMaxMetric(torchmetrics.MeanSquaredError()),
        "mean._base_metric.persistent(True)",
    ),
    "an output of several": (
        lambda: torchmetrics.MultioutputWrapper(torchmetrics.MeanSquaredError(), 1),
        "mean.metrics[0].persistent(True)",
    ),
    "a task of several": (
        lambda: torchmetrics.MultitaskWrapper({"a": torchmetrics.MeanSquaredError()}),
        'mean.task_metrics["a"].persistent(True)',
    ),
    "resampled": (
        lambda: torchmetrics.BootStrapper(torchmetrics.MeanSquaredError(), num_bootstraps=3),
        "part.persistent(True) for part in mean.modules() that is a torchmetrics.Metric",
    ),
    "a tracker": (
        lambda: torchmetrics.MetricTracker(torchmetrics.MeanSquaredError()),
        "mean._base_metric.persistent(True)",
    ),
}


@resume.refused("modules: wrappers of torchmetrics around metrics that are not persistent", "the cure names these")
@pytest.mark.parametrize(("make", "cure"), CURES.values(), ids=CURES)
def test_a_wrapper_of_metrics_is_refused_with_a_line_that_helps(make: Any, cure: str, tmp_path: Path) -> None:
    metric = make()
    if hasattr(metric, "persistent"):
        metric.persistent(True)
    with pytest.raises(BadConfig) as refusal:
        attempt(tmp_path / "refused", objects=lambda: {"mean": metric})
    assert f"say {cure}" in str(refusal.value)
    for part in metric.modules():
        if isinstance(part, torchmetrics.Metric):
            part.persistent(True)
    attempt(tmp_path / "persistent", objects=lambda: {"mean": metric})


@resume.approximate("modules: MinMaxMetric of torchmetrics", "its least and largest value begin anew")
def test_a_value_that_a_metric_keeps_outside_its_state_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric: Any = torchmetrics.MinMaxMetric(torchmetrics.MeanSquaredError())
    metric._base_metric.persistent(True)
    attempt(tmp_path, objects=lambda: {"mean": metric})
    assert "mean.min_val and 1 more: a value of a metric outside of its state" in caplog.text
    caplog.clear()
    attempt(tmp_path / "another", objects=lambda: {"mean": persistent(torchmetrics.MeanSquaredError())})
    assert "outside of its state" not in caplog.text


def persistent(metric: Any) -> Any:
    metric.persistent(True)
    return metric


@resume.approximate("modules: a metric of torchmetrics inside of a model", "it begins anew; say persistent(True)")
def test_a_metric_inside_of_a_model_that_leaves_its_values_out_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build(*, persistent: bool) -> Any:
        model = net()
        model.mean = torchmetrics.MeanMetric()
        model.mean.persistent(persistent)
        return model

    attempt(tmp_path / "one", build=lambda: build(persistent=True))
    assert "leaves its values out" not in caplog.text
    attempt(tmp_path / "two", build=lambda: build(persistent=False))
    assert "model.mean: a metric that leaves its values out of the model's state" in caplog.text


BUFFERS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "sparse": (lambda: torch.eye(4).to_sparse(), "model/mask is sparse_coo; save ….to_dense()"),
    "in rows": (in_rows, "model/mask is sparse_csr"),
    "quantized": (
        eight_bits,
        "model/mask is quantized; save ….int_repr(), or say persistent=False if the script makes it again",
    ),
    "nested": (ragged, "model/mask is a nested tensor"),
    "expanded": (lambda: torch.ones(3).expand(4, 3), "model/mask overlaps itself"),
    "8 bits": (lambda: EightBit(torch.ones(4)), "model/mask is a support.subclasses.EightBit"),
}
OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "an enum": (lambda: Mode.TRAIN, "Mode, which only its own code"),
    "a number with a name": (lambda: Level.LOW, "Level and would come back"),
    "a set": (lambda: {1}, "mine/value is a builtins.set, which only its own code could make again; save sorted(…)"),
    "an array": (lambda: np.ones(2), "mine/value is a numpy.ndarray"),
    "code": (lambda: defaultdict(lambda: 0), "mine/value is a collections.defaultdict and would come back as a dict"),
    "8 bits": (lambda: [EightBit(torch.ones(4))], "mine/value/0 is a support.subclasses.EightBit"),
}
CASES: list[tuple[str, dict[str, Any], str]] = [
    *((f"a buffer: {name}", {"build": with_buffer(make)}, told) for name, (make, told) in BUFFERS.items()),
    *(
        (f"an object: {name}", {"objects": lambda make=make: {"mine": State(make())}}, told)
        for name, (make, told) in OBJECTS.items()
    ),
    ("extra state", {"build": lambda: net(Extra(io.BytesIO(b"x")))}, "model/1._extra_state is a _io.BytesIO"),
    ("lazy", {"build": lazy}, "model/1.weight has no shape yet; run a batch through the module before"),
    ("an optimizer in 8 bits", {"make": lambda m: EightBitSGD(m.parameters(), 0.1)}, "take torch.optim.AdamW(…), say"),
    ("frozen weights in 8 bits", {"build": eight_bit_weights}, "model/1.weight is a support.subclasses.EightBit"),
    ("an object that fails", {"objects": lambda: {"mine": Silent(1)}}, "mine does not say its state (NotImplemented"),
]


@resume.refused(
    "states: sets, bytes, arrays, enums, classes; sparse, quantized, nested, overlapping or lazy tensors; subclasses",
    "only their own code could make them again",
)
@pytest.mark.parametrize(("name", "parts", "told"), CASES, ids=[name for name, _, _ in CASES])
@pytest.mark.parametrize("every", [1, 3])
def test_what_would_not_come_back_is_refused_after_the_first_step_by_its_name(
    name: str, parts: dict[str, Any], told: str, every: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []
    with pytest.raises(BadConfig) as refused:
        attempt(tmp_path, **parts, trained=trained, every=every)
    assert told in str(refused.value)
    assert trained == [1]
    assert not list(tmp_path.glob("step-*"))
    shown = capsys.readouterr().err
    assert shown.count(str(refused.value)) == 1
    assert "Traceback" not in shown


def test_objects_whose_tensors_would_have_one_name_are_refused(tmp_path: Path) -> None:
    objects = {"a": State({"b": torch.ones(1)}), "a/value": State(torch.ones(1))}
    objects["a/value"].state_dict = lambda: {"b": torch.zeros(1)}  # type: ignore[method-assign]
    with pytest.raises(BadConfig, match="a/value: another object has a a/value/b too; give it a name without a slash"):
        attempt(tmp_path, objects=lambda: objects)


def refused_on_one_rank(directory: Path) -> str:
    """Return what a rank hears of it when the state of rank 1 alone would not come back."""

    def objects() -> dict[str, Any]:
        return {"mine": State(Level.LOW if torch.distributed.get_rank() == 1 else 1)}

    try:
        attempt(directory, objects=objects)
    except BadConfig as refused:
        return str(refused)
    return ""


def test_all_ranks_refuse_what_one_of_them_could_not_resume_from(tmp_path: Path) -> None:
    exits = ranks.run(2, partial(refused_on_one_rank, tmp_path))
    assert [(exit_.code, "Level and would come back as a int" in exit_.result) for exit_ in exits] == [(0, True)] * 2


def spread(directory: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer

    try:
        attempt(directory, make=lambda model: ZeroRedundancyOptimizer(model.parameters(), AdamW, lr=0.1))
    except BadConfig as refused:
        return str(refused)
    return ""


@resume.refused("optimizers: ZeroRedundancyOptimizer", "no rank has all of its state")
def test_an_optimizer_whose_state_is_spread_over_the_ranks_is_refused(tmp_path: Path) -> None:
    exits = ranks.run(2, partial(spread, tmp_path))
    told = "optimizer is a ZeroRedundancyOptimizer, whose state is spread over the ranks; shard the model by torch"
    assert [(exit_.code, told in exit_.result) for exit_ in exits] == [(0, True)] * 2


class Point(NamedTuple):
    """A pair of the script's own."""

    step: int
    loss: float


class Log(State):
    """What the standard library and numpy have for a loop to remember things in."""

    def __init__(self) -> None:
        super().__init__(
            {
                "seen": OrderedDict(a=0, b=0),
                "by kind": defaultdict(list),
                "last": deque(maxlen=3),
                "points": [],
                "mean": np.float64(0.0),
                "count": np.int64(0),
                "words": Counter(),
            }
        )

    def add(self, step: int) -> None:
        own = self.value
        own["seen"].move_to_end("a" if step % 2 else "b")
        own["by kind"][step % 3].append(step)
        own["last"].append(Point(step, step / 7))
        own["points"].append(Point(step, step / 3))
        own["mean"] += (np.float32(step) / own["count"] if own["count"] else 0) * own["mean"].dtype.type(0.5)
        own["count"] += 1
        own["words"][Point(step % 2, 0.5)] += 1


def note(session: piton_trainer.Session, objects: dict[str, Any]) -> None:
    objects["log"].add(session.step + 1)


def note_and_stop(session: piton_trainer.Session, objects: dict[str, Any]) -> None:
    note(session, objects)
    if session.step + 1 == STOP:
        tiny.terminate(session)


@resume.exact("states: OrderedDict, defaultdict, deque, Counter, named tuples, numbers of numpy")
def test_standard_containers_and_numbers_of_numpy_go_on_as_they_were(tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole", objects=lambda: {"log": Log()}, body=note)
    with pytest.raises(Stopped):
        attempt(tmp_path / "disturbed", objects=lambda: {"log": Log()}, body=note_and_stop)
    resumed = attempt(tmp_path / "disturbed", objects=lambda: {"log": Log()}, body=note)
    assert repr(resumed["log"].value) == repr(whole["log"].value)


@pytest.mark.parametrize(
    "build",
    [
        with_buffer(lambda: torch.arange(6.0).reshape(2, 3).T),
        with_buffer(lambda: torch.tensor([1 + 2j, 3j]).conj()),
        with_buffer(lambda: torch.tensor([1 + 2j, 3j]).conj().imag),
        with_buffer(lambda: Named(torch.arange(3.0))),
        with_buffer(lambda: torch.arange(3.0).to(torch.float8_e5m2)),
        lambda: net(Extra(OrderedDict(k=np.float32(0.1)))),
    ],
)
def test_unusual_parts_of_a_module_are_trained_to_the_end_and_come_back(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    whole = attempt(tmp_path / "whole", build, background=True)
    with pytest.raises(Stopped):
        attempt(tmp_path / "disturbed", build, body=stop_at(STOP), background=True)
    resumed = attempt(tmp_path / "disturbed", build)
    assert repr(resumed["model"]) == repr(whole["model"])


@pytest.mark.parametrize(
    "make", [lambda: Level.LOW, lambda: [UserDict(a=1)], lambda: {"a": defaultdict(lambda: 0)}, lambda: {Level.LOW: 1}]
)
def test_a_run_that_has_saved_with_an_older_piton_is_only_warned(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    split = codec.split
    with monkeypatch.context() as older:
        older.setattr(codec, "split", lambda value, key, **more: split(value, key, **{**more, "flaws": None}))
        with pytest.raises(Stopped):
            attempt(tmp_path, objects=lambda: {"mine": Anew(make)}, body=stop_at(STOP))
    trained: list[int] = []
    warnings: list[str | None] = []

    def look(session: piton_trainer.Session, _: Any) -> None:
        warnings.append(session._opened.progress().resume_warning)

    attempt(tmp_path, objects=lambda: {"mine": Anew(make)}, body=look, trained=trained)
    assert trained[-1] == STEPS
    assert warnings[0] is None
    assert warnings[-1] is not None
    assert caplog.text.count("what is saved will not come back as it is") == 1


def test_what_a_run_comes_to_hold_later_is_told_and_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(session: piton_trainer.Session, objects: dict[str, Any]) -> None:
        if session.step + 1 >= STOP:
            objects["mine"].value = Level.LOW

    attempt(tmp_path, objects=lambda: {"mine": State(1)}, body=change)
    assert caplog.text.count("Level and would come back as a int") == 1


def spoil(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Have all saves write other numbers under one key than they are given, with a manifest that fits."""
    write = BlockingCheckpointer._write_shards

    def write_other(self: Any, folder: Path, snapshot: Any) -> None:
        tensors = {name: tensor + 1 if name == key else tensor for name, tensor in snapshot.tensors.items()}
        write(self, folder, piton_trainer.checkpoint.Snapshot(**{**vars(snapshot), "tensors": tensors}))

    monkeypatch.setattr(BlockingCheckpointer, "_write_shards", write_other)


def wait_for_the_look(session: piton_trainer.Session, _: Any) -> None:
    """Wait until the first checkpoint has been read again."""
    assert session._services.store is not None
    if (look := session._services.store._state._read_back) is not None:
        look.wait()


@resume.refused("states: a first checkpoint that reads otherwise than it was", "it would not come back")
@pytest.mark.parametrize(
    "key", ["model/0.weight", "optimizer/0/state/0.bias/exp_avg", "mine/value/0", "rank0/rng/torch"]
)
def test_the_first_save_is_read_again_and_refused_if_it_is_another_state(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, key)
    trained: list[int] = []
    with pytest.raises(BadConfig, match=f"{key} is not what was saved when step-000000002 is read again"):
        attempt(tmp_path, objects=lambda: {"mine": State([torch.ones(2)])}, body=wait_for_the_look, trained=trained)
    assert trained == [1, 2, 3, 4]


def test_a_training_that_is_finished_by_then_is_only_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, "model/0.weight")
    attempt(tmp_path, body=wait_for_the_look, every=STEPS - 2)
    assert "model/0.weight is not what was saved" in caplog.text


def test_a_run_that_has_resumed_is_only_warned_of_its_first_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        attempt(tmp_path, body=lambda session, _: tiny.terminate(session))
    spoil(monkeypatch, "model/0.weight")
    attempt(tmp_path, body=wait_for_the_look)
    assert caplog.text.count("model/0.weight is not what was saved") == 1


def test_no_more_of_an_object_is_kept_for_the_look_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "MOST_BYTES", 40)
    tensors = {"a/large": torch.ones(11), "a/first": torch.ones(6), "a/second": torch.ones(5), "b/own": torch.ones(10)}
    kept = read_back.ReadBack(1, tensors)._kept
    assert list(kept) == ["a/first", "b/own"]
    assert all(kept[key].data_ptr() != tensors[key].data_ptr() for key in kept)


def test_nothing_is_saved_for_the_look(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with pytest.raises(Stopped):
        attempt(whole, body=stop_at(8), every=3)
    assert sorted(path.name for path in whole.glob("step-*")) == ["step-000000006", "step-000000008"]


def test_a_volume_that_fails_under_the_look_is_no_problem_of_its_own(tmp_path: Path) -> None:
    look = read_back.ReadBack(1, {"a/b": torch.ones(1)})
    look.begin(tmp_path / "step-000000001")
    look.wait()
    assert look.problem is None
