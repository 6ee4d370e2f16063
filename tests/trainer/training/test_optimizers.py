"""A resumed optimizer is the optimizer of the save: its groups, settings and momenta, or a sentence that names both."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, SGD, Adam, Adamax, AdamW, Muon, NAdam, Optimizer, RMSprop, SparseAdam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

import piton_trainer
from fuzz_loops.models import ExtraState
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.state import optimizers
from support import ranks, resume, tiny

STEPS, STOP = 9, 5
OF_TORCH = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind not in (Optimizer, LBFGS, Muon, SparseAdam)
]
"""The optimizers that take any parameters, in groups."""
Make = Callable[[nn.Sequential], Any]
Body = Callable[[int, nn.Sequential, Any], None]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def nothing(step: int, model: nn.Sequential, optimizer: Any) -> None:
    """Leave all as it is."""


def attempt(
    directory: Path,
    make: Make,
    body: Body = nothing,
    *,
    stop: bool = False,
    dtype: torch.dtype = torch.float32,
    schedule: Callable[[Optimizer], Any] | None = None,
    is_sharded: bool = False,
) -> dict[str, Any]:
    """Return weights, momenta and settings after one attempt."""
    data = [torch.randn(6, 4, generator=torch.Generator().manual_seed(step)) for step in range(STEPS)]
    with piton_trainer.session(tiny.config(directory)) as session:
        model = net(dtype)
        if is_sharded:
            for part in [model[0], model[2], model[4], model]:
                fully_shard(part, mesh=init_device_mesh("cpu", (session.world_size,)))
        optimizer = make(model)
        several = optimizer if isinstance(optimizer, list) else [optimizer]
        parts = {} if schedule is None else {"scheduler": schedule(optimizer)}
        session.restore(model=model, optimizer=optimizer, **parts)
        for x in session.steps(data, epochs=1):
            body(session.step + 1, model, optimizer)
            for one in several:
                one.zero_grad()
            model(x.to(dtype)).square().mean().backward()
            for one in several:
                one.step()
            if parts:
                parts["scheduler"].step()
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
        return {"weights": plain(model.state_dict()), "momenta": [momenta(one) for one in several]}


def momenta(optimizer: Optimizer) -> list[Any]:
    """Return the settings and the state of each group."""
    groups = optimizer.param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    states = [[plain(optimizer.state.get(parameter)) for parameter in group["params"]] for group in groups]
    return [[own, *state] for own, state in zip(settings, states, strict=True)]


def plain(state: Any) -> Any:
    """Return a state with whole tensors."""
    return {
        key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in dict(state or {}).items()
    }


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield key
            yield from flat(value[key])
    elif isinstance(value, list | tuple):
        yield len(value)
        for part in value:
            yield from flat(part)
    else:
        yield (value.dtype, value.tolist()) if isinstance(value, Tensor) else value


def flat_attempt(*given: Any, **more: Any) -> list[Any]:
    return list(flat(attempt(*given, **more)))


def expect_exact(directory: Path, make: Make, body: Body = nothing, **more: Any) -> None:
    whole = attempt(directory / "whole", make, body, **more)
    with pytest.raises(Stopped):
        attempt(directory / "disturbed", make, body, stop=True, **more)
    assert list(flat(attempt(directory / "disturbed", make, body, **more))) == list(flat(whole))


def expect_refused(directory: Path, before: Make, after: Make) -> str:
    with pytest.raises(Stopped):
        attempt(directory, before, stop=True)
    with pytest.raises(BadConfig) as refused:
        attempt(directory, after)
    return str(refused.value)


def head(kind: Any = AdamW, **settings: Any) -> Make:
    return lambda model: kind(model[0].parameters(), **{"lr": 0.01, **settings})


def whole(kind: Any = AdamW, **settings: Any) -> Make:
    return lambda model: kind(model.parameters(), **{"lr": 0.01, **settings})


def in_groups(*rates: float) -> Make:
    return lambda model: AdamW([{"params": list(model[2 * n].parameters()), "lr": r} for n, r in enumerate(rates)])


def unfreeze(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    if step == 3:
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.003})


def unfreeze_twice(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    unfreeze(step, model, optimizer)
    if step == 4:
        optimizer.add_param_group({"params": [model[4].weight], "weight_decay": 0.3})


def unfreeze_late(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    if step > STOP and len(optimizer.param_groups) == 1:
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.003})


UNFROZEN: set[int] = set()
"""What a script remembers for as long as its process lives."""


def unfreeze_unless_done(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    if step >= 3 and id(model) not in UNFROZEN:
        UNFROZEN.add(id(model))
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.003})


def split(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    if step == 3:
        group = optimizer.param_groups[0]
        biases = [p for p in group["params"] if p.ndim == 1]
        group["params"] = [p for p in group["params"] if p.ndim > 1]
        optimizer.add_param_group({"params": biases, "weight_decay": 0.0})


def merge(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    if step == 3:
        optimizer.param_groups[0]["params"] += optimizer.param_groups.pop()["params"]


def swap(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    if step == 3:
        optimizer.param_groups.reverse()


def freeze_for_a_while(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    model[0].requires_grad_(not 3 <= step < 8)


@resume.exact("optimizers: groups that a script adds, splits, merges or removes in the middle")
@pytest.mark.parametrize(
    ("make", "body"),
    [
        (head(), unfreeze),
        (head(SGD), unfreeze),  # without any state
        (head(SGD, momentum=0.9), unfreeze),
        (head(), unfreeze_twice),
        (head(), unfreeze_unless_done),
        (whole(), split),
        (in_groups(0.01, 0.02), merge),
        (in_groups(0.01, 0.02, 0.03), merge),
        (in_groups(0.01, 0.02), swap),
        (whole(), freeze_for_a_while),
        (lambda model: [head()(model), AdamW(model[4].parameters())], lambda s, m, o: unfreeze(s, m, o[0])),
    ],
)
def test_groups_that_a_script_changes_in_the_middle_are_there_again(make: Make, body: Body, tmp_path: Path) -> None:
    expect_exact(tmp_path, make, body)


def by_closure(directory: Path, *, backwards: bool = False, stop: bool = False) -> list[Tensor]:
    """Train with an optimizer whose one state is of the whole list of parameters; return the weights."""
    with piton_trainer.session(tiny.config(directory)) as session:
        model = net()
        weights = list(model.parameters())
        optimizer = LBFGS(weights[::-1] if backwards else weights, lr=0.1, max_iter=3, history_size=3)
        session.restore(model=model, optimizer=optimizer)
        for x in session.steps([torch.randn(6, 4, generator=torch.Generator().manual_seed(n)) for n in range(STEPS)]):

            def loss(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                found: Tensor = model(x).square().mean()
                found.backward()  # type: ignore[no-untyped-call]
                return found

            optimizer.step(loss)  # type: ignore[no-untyped-call]
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
    return [weight.detach() for weight in weights]


def test_a_state_of_a_whole_list_of_parameters_keeps_their_order(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        by_closure(tmp_path / "parts", stop=True)
    again = by_closure(tmp_path / "parts", backwards=True)
    assert all(map(torch.equal, again, by_closure(tmp_path / "whole")))


def thaw(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
    model[0].requires_grad_(step >= 3)


@pytest.mark.parametrize("kind", OF_TORCH)
def test_a_state_of_a_parameter_that_the_script_has_frozen_is_read(kind: Any, tmp_path: Path) -> None:
    def make(model: nn.Sequential) -> Optimizer:
        model[0].weight = nn.Parameter(torch.linspace(-1, 1, 32).view(4, 8).t())  # in columns, as some layers have it
        model[2].weight = nn.Parameter(torch.linspace(-1, 1, 32).view(4, 8)[:1].expand(4, 8).contiguous())
        model.requires_grad_(True)[0].requires_grad_(False)
        model[4].weight = nn.Parameter(torch.ones(1, 4))  # a row, whose factors may be as large as itself
        optimizer: Optimizer = whole(kind)(model)
        return optimizer

    expect_exact(tmp_path, make, thaw)


@pytest.mark.parametrize("kind", OF_TORCH)
def test_a_group_that_is_added_after_a_resume_has_the_settings_of_the_script(kind: Any, tmp_path: Path) -> None:
    expect_exact(tmp_path, head(kind), unfreeze_late)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_groups_over_a_model_with_state_of_its_own_are_there_again(kind: Any, tmp_path: Path) -> None:
    def make(model: nn.Sequential) -> Optimizer:
        model.append(ExtraState())
        optimizer: Optimizer = whole(kind)(model)
        return optimizer

    expect_exact(tmp_path, make, split)


@resume.exact("optimizers: groups of sharded parameters")
@pytest.mark.parametrize("body", [unfreeze, unfreeze_twice, freeze_for_a_while])
def test_groups_of_sharded_parameters_are_there_again(body: Body, tmp_path: Path) -> None:
    make = whole() if body is freeze_for_a_while else head()
    undisturbed = ranks.run(2, partial(flat_attempt, tmp_path / "whole", make, body, is_sharded=True))
    stopped = ranks.run(2, partial(flat_attempt, tmp_path / "disturbed", make, body, is_sharded=True, stop=True))
    resumed = ranks.run(2, partial(flat_attempt, tmp_path / "disturbed", make, body, is_sharded=True))
    assert [exit_.code for exit_ in (*undisturbed, *stopped, *resumed)] == [0, 0, 143, 143, 0, 0]
    assert resumed[0].result == undisturbed[0].result


@resume.exact("schedules: of a group that was added")
def test_the_schedule_of_a_group_that_was_added_goes_on(tmp_path: Path) -> None:
    def schedule(optimizer: Optimizer) -> StepLR:
        return StepLR(optimizer, step_size=2, gamma=0.5)

    def body(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
        if step == 3:
            optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.003, "initial_lr": 0.003})

    expect_exact(tmp_path, head(), body, schedule=schedule)


class WideAdam(Optimizer):
    """Adam for weights in bf16, with everything of its own in fp32, and a count of every step in whole numbers."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["master"], state["momentum"] = p.float(), torch.zeros_like(p, dtype=torch.float32)
                    state["signs"] = torch.zeros_like(p, dtype=torch.int8)
                state["momentum"].lerp_(p.grad.float(), 0.1)
                state["signs"].add_(p.grad.sign().to(torch.int8))
                state["master"].add_(state["momentum"] + 1e-4 * state["signs"], alpha=-group["lr"])
                p.copy_(state["master"])


@resume.exact("optimizers: state in fp32 over weights in bf16")
def test_momenta_that_are_wider_than_their_weights_stay_so(tmp_path: Path) -> None:
    expect_exact(tmp_path, whole(WideAdam), dtype=torch.bfloat16)


@resume.refused("optimizers: another class with other settings", "both are named")
@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (whole(AdamW), whole(SGD, momentum=0.9), ["AdamW's", "SGD", "momentum"]),
        (whole(SGD, momentum=0.9), whole(AdamW), ["SGD's", "AdamW", "betas"]),
        (whole(Adam), whole(Adamax), ["Adam's", "Adamax"]),
        (whole(AdamW), whole(NAdam), ["AdamW's", "NAdam", "momentum_decay"]),
        (whole(RMSprop), whole(Adam), ["RMSprop's", "Adam"]),
    ],
)
def test_the_state_of_another_kind_of_optimizer_is_refused_at_the_restore(
    before: Make, after: Make, named: list[str], tmp_path: Path
) -> None:
    told = expect_refused(tmp_path, before, after)
    assert "optimizer: the checkpoint's state is" in told
    assert all(name in told for name in named)
    assert "begin a new run" in told


@pytest.mark.parametrize(("before", "after"), [(whole(AdamW), whole(SGD)), (whole(SGD), whole(RMSprop))])
def test_it_is_refused_by_its_settings_where_the_checkpoint_is_older_and_has_no_class(
    before: Make, after: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers.Given, "to_document", lambda _: {})
    assert "the checkpoint's state is of another optimizer, with" in expect_refused(tmp_path, before, after)


def test_a_sibling_with_the_same_settings_goes_on(tmp_path: Path) -> None:
    class Mine(AdamW):
        """One of the user's own."""

    with pytest.raises(Stopped):
        attempt(tmp_path, whole(AdamW), stop=True)
    assert attempt(tmp_path, whole(Mine))["momenta"][0][0][1]["step"] == STEPS


@resume.approximate("optimizers: a group that only the resumed script has", "it begins without state")
def test_a_group_that_only_the_script_has_begins_without_state_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        attempt(tmp_path, in_groups(0.01), stop=True)
    resumed = attempt(tmp_path, in_groups(0.01, 0.02))
    assert [group[0]["lr"] for group in resumed["momenta"][0]] == [0.01, 0.02]
    assert [group[1]["step"] for group in resumed["momenta"][0]] == [STEPS, STEPS - STOP]
    assert (
        "optimizer: its parameter groups are [0.weight, 0.bias] in the checkpoint, and [0.weight, 0.bias] and "
        "[2.weight, 2.bias] in the script; training goes on with the checkpoint's, and with 2.weight, 2.bias as the "
        "script has them, without any state"
    ) in caplog.text


def test_a_parameter_goes_back_to_the_optimizer_that_trained_it(tmp_path: Path) -> None:
    def in_two(*parts: int) -> Make:
        return lambda model: [SGD(model[parts[0]].parameters(), momentum=0.9), Adam(model[parts[1]].parameters())]

    whole_run = attempt(tmp_path / "whole", in_two(0, 2))
    with pytest.raises(Stopped):
        attempt(tmp_path / "disturbed", in_two(0, 2), stop=True)
    assert list(flat(attempt(tmp_path / "disturbed", in_two(2, 0)))) == list(flat(whole_run))


def by_lambdas(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 / (1 + step))


@resume.refused("schedules: a rate per group, for another number of groups", "both numbers are named")
@pytest.mark.parametrize(
    ("before", "after", "schedule"),
    [
        (1, 2, by_lambdas),
        (2, 1, by_lambdas),
        (2, 1, lambda optimizer: MultiplicativeLR(optimizer, lambda step: 0.9)),
        (1, 2, lambda optimizer: CosineAnnealingLR(optimizer, 20)),
        (1, 2, lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)),
        (
            1,
            2,
            lambda optimizer: SequentialLR(
                optimizer, [StepLR(optimizer, 2), CosineAnnealingWarmRestarts(optimizer, 3)], milestones=[2]
            ),
        ),
    ],
)
def test_a_schedule_of_other_groups_than_the_checkpoint_s_is_refused_before_the_first_step(
    before: int, after: int, schedule: Any, tmp_path: Path
) -> None:
    rates = (0.01, 0.02)
    with pytest.raises(Stopped):
        attempt(tmp_path, in_groups(*rates[:before]), stop=True, schedule=schedule)
    with pytest.raises(BadConfig) as refused:
        attempt(tmp_path, in_groups(*rates[:after]), schedule=schedule, body=lambda *_: pytest.fail("it has begun"))
    assert str(refused.value).startswith("scheduler: it is a ")
    assert "of 1 parameter groups, and the optimizer has 2, with those of the checkpoint" in str(refused.value)


def test_a_schedule_that_goes_by_the_groups_themselves_takes_those_of_the_checkpoint(tmp_path: Path) -> None:
    def schedule(optimizer: Optimizer) -> StepLR:
        return StepLR(optimizer, step_size=2, gamma=0.5)

    with pytest.raises(Stopped):
        attempt(tmp_path, in_groups(0.01), stop=True, schedule=schedule)
    assert len(attempt(tmp_path, in_groups(0.01, 0.02), schedule=schedule)["momenta"][0]) == 2


@resume.approximate(
    "optimizers: a changed lr, weight decay or amsgrad",
    "the checkpoint's is used; the script can set its own after restore",
)
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lr": 0.5}, "lr is 0.5 in the script and 0.01 in the checkpoint"),
        ({"weight_decay": 0.3}, "weight_decay is 0.3 in the script and 0.01 in the checkpoint"),
        ({"amsgrad": True}, "amsgrad is True in the script and False in the checkpoint"),
        ({"betas": (0.8, 0.9)}, "betas is (0.8, 0.9) in the script and (0.9, 0.999) in the checkpoint"),
    ],
)
def test_a_setting_that_the_script_changes_is_told_with_the_value_that_is_used(
    changed: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        attempt(tmp_path, whole(), stop=True)
    resumed = attempt(tmp_path, whole(**changed))
    assert f"optimizer: {told}; training goes on with the checkpoint's: to use the script's, set it" in caplog.text
    key = next(iter(changed))
    assert resumed["momenta"][0][0][0][key] != changed[key]


def test_a_changed_setting_is_told_in_every_attempt_until_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def use(step: int, model: nn.Sequential, optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.5

    for make in (whole(), whole(lr=0.5)):
        with pytest.raises(Stopped):
            attempt(tmp_path, make, stop=True, body=lambda *_: tiny.terminate(None))  # type: ignore[arg-type]
    caplog.clear()
    with pytest.raises(Stopped):
        attempt(tmp_path, whole(lr=0.5), use, stop=True)
    assert "lr is 0.5 in the script" in caplog.text
    caplog.clear()
    attempt(tmp_path, whole(lr=0.5), use)
    assert "in the script" not in caplog.text


@pytest.mark.parametrize(
    ("schedule", "body"),
    [
        (lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=2 * STEPS), nothing),
        (None, lambda step, _, optimizer: optimizer.param_groups[0].update(lr=0.1 / step)),
    ],
)
def test_a_rate_that_changes_as_it_should_is_not_told(
    schedule: Any, body: Body, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    expect_exact(tmp_path, whole(), body, schedule=schedule)
    assert "in the script" not in caplog.text


@resume.approximate("models: another dtype than in the checkpoint", "weights are converted")
def test_weights_of_another_type_than_in_the_checkpoint_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        attempt(tmp_path, whole(), stop=True)
    resumed = attempt(tmp_path, whole(), dtype=torch.bfloat16)
    assert resumed["momenta"][0][0][1]["exp_avg"].dtype == torch.bfloat16
    told = "model: 0.weight and 5 more is torch.float32 in the checkpoint and torch.bfloat16 in the script"
    assert told in caplog.text


def test_a_checkpoint_without_class_and_settings_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run = attempt(tmp_path / "whole", in_groups(0.01, 0.02))
    with monkeypatch.context() as older:
        older.setattr(optimizers.Given, "to_document", lambda _: {})
        with pytest.raises(Stopped):
            attempt(tmp_path / "disturbed", in_groups(0.01, 0.02), stop=True)
    assert list(flat(attempt(tmp_path / "disturbed", in_groups(0.01, 0.02)))) == list(flat(whole_run))


def scaled(directory: Path, *, is_on: bool, stop: bool = False) -> dict[str, Any]:
    """Return what a scaler of gradients has after one attempt."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.01)
    with piton_trainer.session(tiny.config(directory)) as session:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2, enabled=is_on)
        session.restore(model=model, optimizer=optimizer, scaler=scaler)
        for x in session.steps([torch.ones(6, 4)] * STEPS):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
        return dict(scaler.state_dict())


@resume.exact("GradScaler: on or off")
@pytest.mark.parametrize("is_on", [False, True])
def test_a_scaler_goes_on_as_it_was(is_on: bool, tmp_path: Path) -> None:
    whole_run = scaled(tmp_path / "whole", is_on=is_on)
    with pytest.raises(Stopped):
        scaled(tmp_path / "disturbed", is_on=is_on, stop=True)
    assert scaled(tmp_path / "disturbed", is_on=is_on) == whole_run


@resume.refused("GradScaler: switched on", "the checkpoint has no scale")
def test_a_scaler_that_is_switched_on_has_no_state_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        scaled(tmp_path, is_on=False, stop=True)
    with pytest.raises(BadConfig, match="scaler: a GradScaler that is off in the checkpoint, and on in the script"):
        scaled(tmp_path, is_on=True)


@resume.approximate("GradScaler: switched off", "its scale is left out")
def test_a_scaler_that_is_switched_off_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        scaled(tmp_path, is_on=True, stop=True)
    assert scaled(tmp_path, is_on=False) == {}
    assert "scaler: a GradScaler that is on in the checkpoint, with a scale of 32, and off in the script" in caplog.text
