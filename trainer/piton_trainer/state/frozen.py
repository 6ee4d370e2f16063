"""Which parameters are trained: a script may freeze or unfreeze a layer in the middle, by `requires_grad`."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from piton_trainer.state.state_dicts import parameters_by_name


def frozen_names(parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the names of those that are not trained."""
    return [name for name, value in parameters.items() if not value.requires_grad]


def freeze_as(name: str, module: nn.Module, frozen: Collection[str]) -> list[str]:
    """Let all parameters of a module but these be trained; return what is to be told where the script says otherwise.

    `name` is that of the module.
    """
    known = {
        key: value
        for key, value in parameters_by_name(module).items()
        if value.is_floating_point() or value.is_complex()
    }
    thawed = [key for key in frozen_names(known) if key not in frozen]
    stopped = [key for key in known if key in frozen and known[key].requires_grad]
    for key in (*thawed, *stopped):
        known[key].requires_grad_(key not in frozen)
    sides = ((thawed, "the script", "the checkpoint"), (stopped, "the checkpoint", "the script"))
    return [
        f"{name}: {keys[0]}{f' and {len(keys) - 1} more' if keys[1:] else ''}: frozen in {here}, trained in {there}; "
        "training goes on as in the checkpoint; to change that, say requires_grad_() after restore"
        for keys, here, there in sides
        if keys
    ]
