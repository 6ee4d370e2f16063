"""What is captured without a walk through the model is what torch's walk says, also after the model was changed."""

import copy
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

import piton_trainer
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.save import plan
from piton_trainer.state import state_dicts, tracked_optimizers
from piton_trainer.state.optimizers import stateless
from piton_trainer.state.state_dicts import parameters_by_name
from piton_trainer.state.tracked_objects import TrackedObjects
from support import ranks, tiny

Named = dict[str, Any]


class Tied(nn.Module):
    """Two names for one parameter, a buffer that is saved and one that is not, and places that are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Identity())
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        self.twice = self.body[0]
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("dropped", torch.arange(3.0), persistent=False)
        self.register_buffer("later", None)
        self.register_parameter("scale", None)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.head(self.body(self.embed(tokens)))
        return cast("Tensor", found if self.scale is None else found * self.scale)


class Extra(nn.Linear):
    """A module that says more than it holds."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.count = 0

    def get_extra_state(self) -> int:
        self.count += 1
        return self.count


class Counting(SGD):
    """Its state has numbers that are no tensors."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                entry = self.state[parameter]
                entry["count"] = entry.get("count", 0) + 1
                entry["nested"] = {"grad": parameter.detach().clone(), "none": None}
        return super().step(closure)


def stepped(named: Named) -> Named:
    """After a step of every optimizer."""
    for value in named.values():
        for optimizer in value if isinstance(value, list) else [value]:
            if isinstance(optimizer, Optimizer):
                step(optimizer)
    return named


def step(optimizer: Optimizer) -> None:
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def plain() -> Named:
    model = Tied()
    return {"model": model, "optimizer": AdamW(model.parameters()), "ema": AveragedModel(model)}


def several_optimizers() -> Named:
    model = Tied()
    first, *others = model.parameters()
    groups = [{"params": others[:1], "lr": torch.tensor(0.5)}, {"params": others[1:], "weight_decay": 0.0}]
    # The optimizer comes first on purpose.
    return {"optimizer": [SGD([first], momentum=0.9), AdamW(groups)], "model": model}


def named_groups() -> Named:
    model = nn.Linear(3, 3)
    return {"model": model, "optimizer": AdamW(model.named_parameters())}


def numbers_in_the_state() -> Named:
    model = Tied()
    return {"model": model, "optimizer": Counting(model.parameters(), momentum=0.9)}


def frozen() -> Named:
    model = Tied()
    model.body.requires_grad_(False)
    return {"model": model, "optimizer": AdamW([p for p in model.parameters() if p.requires_grad])}


def compiled() -> Named:
    inner = torch.compile(nn.Sequential(nn.Linear(3, 3)), backend="eager")
    model = nn.Sequential(nn.Linear(3, 3), cast("nn.Module", inner))
    return {"model": torch.compile(model, backend="eager"), "optimizer": AdamW(model.parameters())}


def wrapped_for_checkpoints() -> Named:
    model = nn.Sequential(checkpoint_wrapper(nn.Linear(3, 3)), nn.Linear(3, 3))
    return {"model": model, "optimizer": AdamW(model.parameters())}


def parametrized() -> Named:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    return {"model": model, "optimizer": AdamW(model.parameters())}


def with_extra_state() -> Named:
    model = nn.Sequential(Extra(), nn.Linear(3, 3))
    return {"model": model, "optimizer": AdamW(model.parameters())}


def ddp() -> Named:
    model = DistributedDataParallel(Tied())
    return {"model": model, "optimizer": AdamW(model.parameters()), "ema": AveragedModel(model)}


def ddp_of_compiled() -> Named:
    model = DistributedDataParallel(torch.compile(Tied(), backend="eager"))
    return {"model": model, "optimizer": AdamW(model.parameters())}


def without_model() -> Named:
    return {"optimizer": AdamW(nn.Linear(3, 3).parameters()), "numbers": torch.Generator()}


def tensors_in_the_groups() -> Named:
    model = nn.Linear(3, 3)
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    return {"model": model, "optimizer": AdamW(model.parameters(), lr=torch.tensor(0.1), betas=betas, foreach=False)}


KINDS: list[Callable[[], Named]] = [
    *(plain, several_optimizers, named_groups, numbers_in_the_state, frozen, compiled),
    *(wrapped_for_checkpoints, parametrized, without_model, tensors_in_the_groups),
]


def told_by_torch(named: Named) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """What is to be captured, by torch's own walk."""
    found = {}
    model = named.get("model")
    fqns = {} if model is None else parameters_by_name(model)
    names = {id(value): fqn for fqn, value in reversed(fqns.items())}
    for name, value in named.items():
        if isinstance(value, nn.Module):
            state: Any = dict(get_model_state_dict(value))
        elif isinstance(value, torch.Generator):
            state = {"generator": value.get_state()}
        else:
            optimizers = value if isinstance(value, list) else [value]
            state = [
                get_optimizer_state_dict(model, one) if model is not None and one.state else stateless(one, names)
                for one in optimizers
            ]
        found[name] = codec.split(state, name)
    return found


def assert_as_torch_says(captured: tuple[Mapping[str, Any], Mapping[str, Tensor]], named: Named) -> None:
    documents, tensors = {name: without_given(document) for name, document in captured[0].items()}, captured[1]
    wanted = told_by_torch(named)
    assert documents == {name: document for name, (document, _) in wanted.items()}
    theirs = {key: tensor for _, own in wanted.values() for key, tensor in own.items()}
    assert tensors.keys() == theirs.keys()
    assert [key for key, tensor in tensors.items() if not is_same(tensor, theirs[key])] == []


def without_given(document: Any) -> Any:
    """Return a document without what Piton adds to an optimizer's."""
    if not isinstance(document, list):
        return document
    return [{key: value for key, value in part.items() if key not in ("class", "given")} for part in document]


def is_same(one: Tensor, other: Tensor) -> bool:
    """The same numbers to the last bit, read in the same way, and of a parameter its very memory."""
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        if (one.placements, one.device_mesh) != (other.placements, other.device_mesh):
            return False
        one, other = one.to_local(), other.to_local()
    is_alike = (one.dtype, one.shape, one.stride(), type(one.detach())) == (
        *(other.dtype, other.shape, other.stride()),
        type(other.detach()),
    )
    return (
        is_alike and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        if one.dim()
        else torch.equal(one, other)
    )


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often torch was asked."""
    return counted_walks(monkeypatch)


def counted_walks(patch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    count_calls(patch, state_dicts, "get_model_state_dict", counted)
    count_calls(patch, tracked_optimizers, "get_optimizer_state_dict", counted)
    return counted


def count_calls(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, counted: Counter[str]) -> None:
    call = getattr(where, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted[name] += 1
        return call(*args, **kwargs)

    monkeypatch.setattr(where, name, counting)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_all_captures_are_what_torch_says(kind: Callable[[], Named]) -> None:
    named = stepped(kind())
    captured = TrackedObjects(named)
    for _ in range(3):
        assert_as_torch_says(captured.capture(), named)
        stepped(named)


def test_what_a_module_says_beside_what_it_holds_is_asked_every_time() -> None:
    named = stepped(with_extra_state())
    captured = TrackedObjects(named)
    for count in (1, 2, 3):
        assert captured.capture()[0]["model"]["0._extra_state"] == count


@pytest.mark.parametrize("kind", [ddp, ddp_of_compiled], ids=lambda kind: kind.__name__)
def test_a_model_that_ranks_have_copies_of_is_captured_as_torch_says(kind: Callable[[], Named]) -> None:
    def compare() -> None:
        dist.init_process_group("gloo")
        test_all_captures_are_what_torch_says(kind)
        with pytest.MonkeyPatch.context() as patch:
            test_torch_is_asked_once(kind, counted_walks(patch))
        dist.destroy_process_group()

    assert [end.code for end in ranks.run(1, compare)] == [0]


def sharded() -> list[int]:
    """One of two ranks: captures of a model that is sharded, also when a pass has gathered it; walks until then."""
    dist.init_process_group("gloo")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.BatchNorm1d(3))
    for part in (model[0], model[1], model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    named: Named = {"model": model, "optimizer": AdamW(model.parameters())}
    captured = TrackedObjects(named)
    walks = []
    with pytest.MonkeyPatch.context() as patch:
        counted = counted_walks(patch)
        for _ in range(3):
            model(torch.randn(5, 4)).sum().backward()
            named["optimizer"].step()
            found = captured.capture()
            walks.append(counted.total())
            assert_as_torch_says(found, named)
            model(torch.randn(5, 4))  # without a backward pass the root stays gathered
            again = captured.capture()
            walks.append(counted.total())
            assert_as_torch_says(again, named)
    dist.destroy_process_group()
    return walks


def test_a_sharded_model_is_captured_as_torch_says() -> None:
    assert [(end.code, end.result) for end in ranks.run(2, sharded)] == [(0, [2] * 6)] * 2


def sharded_later() -> list[int]:
    """One of two ranks: captures of a model whose parameters are sharded, and then put together again."""
    dist.init_process_group("gloo")
    model = nn.Linear(4, 3)
    named: Named = stepped({"model": model, "optimizer": AdamW(model.parameters())})
    captured = TrackedObjects(named)
    assert_as_torch_says(captured.capture(), named)
    with pytest.MonkeyPatch.context() as patch:
        counted = counted_walks(patch)
        mesh, whole = init_device_mesh("cpu", (2,)), model.weight
        model.weight = nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(0)]))
        train_what_is_there(named)
        found = captured.capture()
        assert isinstance(found[1]["model/weight"], DTensor)
        assert_as_torch_says(found, named)
        model.weight = whole
        train_what_is_there(named)
        assert_as_torch_says(captured.capture(), named)
    dist.destroy_process_group()
    return [counted.total()]


def test_a_model_that_is_sharded_between_two_captures_is_captured_as_torch_says() -> None:
    # No name changes, so torch is not asked again.
    assert [(end.code, end.result) for end in ranks.run(2, sharded_later)] == [(0, [0])] * 2


def test_modules_are_captured_in_the_order_in_which_all_ranks_name_them() -> None:
    named = {name: nn.Linear(1, 1) for name in ("model", "teacher", "ema", "critic", "actor", "probe", "head")}
    documents, tensors = TrackedObjects(named).capture()
    assert list(documents) == list(named)
    assert list(dict.fromkeys(key.split("/")[0] for key in tensors)) == list(named)


@pytest.mark.parametrize(
    "kind",
    [plain, several_optimizers, named_groups, numbers_in_the_state, compiled, parametrized, tensors_in_the_groups],
)
def test_torch_is_asked_once(kind: Callable[[], Named], walks: Counter[str]) -> None:
    named = stepped(kind())
    captured = TrackedObjects(named)
    captured.capture()
    first = walks.total()
    assert first > 0
    for _ in range(3):
        stepped(named)
        captured.capture()
    assert walks.total() == first


def replace_a_parameter(named: Named) -> None:
    named["model"].body[0].weight = nn.Parameter(torch.full((4, 4), 7.0))
    parameters = named["optimizer"].param_groups[0]["params"]
    old = next(p for p in parameters if all(p is not own for own in named["model"].parameters()))
    parameters[next(i for i, p in enumerate(parameters) if p is old)] = named["model"].body[0].weight
    named["optimizer"].state[named["model"].body[0].weight] = named["optimizer"].state.pop(old)


def train_what_is_there(named: Named) -> None:
    """The optimizer takes the model's parameters as they are now, and steps."""
    named["optimizer"].param_groups[0]["params"] = list(named["model"].parameters())
    named["optimizer"].state.clear()
    step(named["optimizer"])


def remove_a_parameter(named: Named) -> None:
    del named["model"].body[0].weight
    train_what_is_there(named)


def tie(named: Named) -> None:
    named["model"].body[0].weight = named["model"].embed.weight
    train_what_is_there(named)


def move_to_another_type(named: Named) -> None:
    named["model"].to(torch.float64)


def freeze(named: Named) -> None:
    named["model"].body.requires_grad_(False)


def swap_two_modules(named: Named) -> None:
    model = named["model"]
    model.body[0], model.head = model.head, model.body[0]


def load_into_new_tensors(named: Named) -> None:
    for name in ("model", "ema"):
        state = {key: value + 1 for key, value in named[name].state_dict().items()}
        named[name].load_state_dict(state, assign=True)
    train_what_is_there(named)


def load_the_optimizer(named: Named) -> None:
    state = copy.deepcopy(named["optimizer"].state_dict())
    for entry in state["state"].values():
        entry["exp_avg"].add_(1)
    named["optimizer"].load_state_dict(state)


def update_the_average(named: Named) -> None:
    named["ema"].update_parameters(named["model"])


def replace_in_the_average(named: Named) -> None:
    named["ema"].module.kept = torch.full((3,), 5.0)
    named["ema"].module.embed.weight = nn.Parameter(torch.ones(4, 4))


def give_the_model_a_method_of_its_own(named: Named) -> None:
    model = named["model"]
    told = model.state_dict
    model.state_dict = types.MethodType(lambda _, *args, **options: {"head.weight": told()["head.weight"] + 1}, model)


def give_a_module_a_method_of_its_own(named: Named) -> None:
    def say(_: nn.Module, destination: Named, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = torch.zeros(1)

    module = named["model"].body[0]
    module._save_to_state_dict = types.MethodType(say, module)


def give_a_parameter_other_memory(named: Named) -> None:
    named["model"].body[0].weight.data = torch.full((4, 4), 7.0)


def swap_two_parameters(named: Named) -> None:
    torch.utils.swap_tensors(  # type: ignore[no-untyped-call]
        named["model"].body[0].weight, named["model"].embed.weight
    )


def make_a_parameter_late(named: Named) -> None:
    named["model"].scale = nn.Parameter(torch.ones(4))


def make_a_parameter_late_and_train_it(named: Named) -> None:
    make_a_parameter_late(named)
    named["optimizer"].add_param_group({"params": [named["model"].scale], "lr": 0.5})


def make_a_buffer_late(named: Named) -> None:
    named["model"].later = torch.ones(2)


def drop_a_buffer(named: Named) -> None:
    named["model"].kept = None


def stop_saving_a_buffer(named: Named) -> None:
    named["model"].register_buffer("kept", torch.zeros(3), persistent=False)


def exchange_what_is_saved(named: Named) -> None:
    fleeting = named["model"]._non_persistent_buffers_set
    fleeting.symmetric_difference_update({"kept", "dropped"})


def untie(named: Named) -> None:
    named["model"].head.weight = nn.Parameter(torch.ones(4, 4))


def rename_a_module(named: Named) -> None:
    children = named["model"]._modules
    children["tail"] = children.pop("head")


def replace_a_module(named: Named) -> None:
    named["model"].body[2] = nn.BatchNorm1d(4)


def replace_a_dictionary(named: Named) -> None:
    module = named["model"].body[0]
    module._parameters = {"weight": nn.Parameter(torch.full((4, 4), 7.0))}
    named["optimizer"].param_groups[0]["params"] = list(named["model"].parameters())
    named["optimizer"].state.clear()


def add_a_hook(named: Named) -> None:
    def double(_: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
        state[f"{prefix}weight"] = 2 * state[f"{prefix}weight"]

    named["model"].body[0].register_state_dict_post_hook(double)


def add_a_hook_that_comes_before(named: Named) -> None:
    def fill(module: nn.Module, prefix: str, keep_vars: bool) -> None:
        assert (prefix, keep_vars) == ("body.1.", False)
        cast("Tensor", module.running_mean).fill_(3.0)

    named["model"].body[1].register_state_dict_pre_hook(fill)


def change_the_class(named: Named) -> None:
    class Silent(nn.Linear):
        def _save_to_state_dict(self, destination: Named, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight"] = torch.zeros(1)

    named["model"].head.__class__ = Silent


def forget_the_state(named: Named) -> None:
    named["optimizer"].state.clear()


def add_to_the_state(named: Named) -> None:
    for entry in named["optimizer"].state.values():
        entry["max_exp_avg_sq"] = entry["exp_avg_sq"].clone()


def rename_in_the_state(named: Named) -> None:
    for entry in named["optimizer"].state.values():
        entry["average"] = entry.pop("exp_avg_sq")


def replace_in_the_state(named: Named) -> None:
    for entry in named["optimizer"].state.values():
        entry["exp_avg"] = entry["exp_avg"] + 1


def put_a_number_into_the_state(named: Named) -> None:
    for entry in named["optimizer"].state.values():
        entry["step"] = int(entry["step"])


def change_the_learning_rate(named: Named) -> None:
    named["optimizer"].param_groups[0]["lr"] = 0.25


def hook_the_optimizer(named: Named) -> None:
    def change(_: Optimizer, state: Named) -> None:
        state["param_groups"][0]["lr"] = 9.0

    named["optimizer"].register_state_dict_post_hook(change)


def split_the_group(named: Named) -> None:
    group = named["optimizer"].param_groups[0]
    named["optimizer"].param_groups.append({**group, "params": [group["params"].pop()]})


CHANGES: list[Callable[[Named], None]] = [
    *(replace_a_parameter, give_a_parameter_other_memory, swap_two_parameters, make_a_parameter_late),
    *(make_a_parameter_late_and_train_it, make_a_buffer_late, drop_a_buffer, stop_saving_a_buffer, untie),
    *(exchange_what_is_saved, rename_a_module, replace_a_module, replace_a_dictionary, add_a_hook),
    *(add_a_hook_that_comes_before, change_the_class, forget_the_state, add_to_the_state, replace_in_the_state),
    rename_in_the_state,
    *(put_a_number_into_the_state, change_the_learning_rate, split_the_group, hook_the_optimizer),
    *(remove_a_parameter, tie, move_to_another_type, freeze, swap_two_modules, load_into_new_tensors),
    *(load_the_optimizer, update_the_average, replace_in_the_average),
    *(give_the_model_a_method_of_its_own, give_a_module_a_method_of_its_own),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_changes_between_two_captures_is_seen(change: Callable[[Named], None]) -> None:
    named = stepped(plain())
    captured = TrackedObjects(named)
    captured.capture()
    change(named)
    for _ in range(2):
        assert_as_torch_says(captured.capture(), named)


def test_a_class_that_is_given_another_method_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(nn.Linear):
        pass

    named: Named = {"model": nn.Sequential(Plain(2, 2))}
    captured = TrackedObjects(named)
    captured.capture()
    monkeypatch.setattr(Plain, "_save_to_state_dict", lambda _, state, *__: state.update(other=torch.zeros(1)))
    assert list(captured.capture()[1]) == ["model/other"]


def test_a_state_that_is_made_later_is_seen() -> None:
    named = plain()
    captured = TrackedObjects(named)
    assert captured.capture()[0]["optimizer"][0]["state"] == {}
    stepped(named)
    assert_as_torch_says(captured.capture(), named)


def test_a_parameter_that_is_not_the_models_is_refused_whenever_it_comes() -> None:
    named = stepped(plain())
    captured = TrackedObjects(named)
    captured.capture()
    named["optimizer"].add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    for _ in range(2):
        with pytest.raises(ValueError, match="put them into the model"):
            captured.capture()


def test_no_tensor_is_kept_from_one_capture_to_the_next() -> None:
    named = stepped(plain())
    captured = TrackedObjects(named)
    captured.capture()
    held = {id(thing) for thing in reachable(captured._modules) if isinstance(thing, Tensor)}
    assert held <= {id(thing) for thing in reachable(list(named.values())) if isinstance(thing, Tensor)}


def reachable(thing: Any, seen: set[int] | None = None) -> Iterator[Any]:
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    yield thing
    parts: list[Any] = []
    if isinstance(thing, Mapping):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple):
        parts += thing
    if hasattr(thing, "__dict__") and not isinstance(thing, type):
        parts += vars(thing).values()
    for part in parts:
        yield from reachable(part, seen)


@pytest.mark.parametrize("overlaps", [False, True], ids=["waiting", "overlapping"])
def test_a_session_walks_and_plans_once_however_often_it_saves(
    tmp_path: Path, walks: Counter[str], monkeypatch: pytest.MonkeyPatch, *, overlaps: bool
) -> None:
    count_calls(monkeypatch, plan, "DefaultSavePlanner", walks)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamW(model.parameters())
    seen = []
    config = tiny.config(tmp_path, tiny.every(2), background_saves=True)
    with piton_trainer.session(config, overlap_saves=overlaps) as session:
        session.restore(model=model, optimizer=optimizer)
        for _ in session.steps(range(9)):
            seen.append(walks.total())
            step(optimizer)
    assert seen == [0] + [seen[1]] * 8
    assert walks["DefaultSavePlanner"] == 1
