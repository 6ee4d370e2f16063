"""Checks before anything is spent. Every problem is one sentence that names the fix."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from piton.api.spec import Spec, Stage
from piton.api.stages import staged
from piton.contract import InputError
from piton.cost.spending import as_text, highest
from piton.local import environment, recipe
from piton.local.processes import search_path

_NO_PROGRAM = "there is no program {} here; install it, or give the path to it"
_NOT_EXECUTABLE = "{} is not executable; chmod +x it, or write the program that runs it, such as python, before it"


def recipe_problems(spec: Spec) -> list[str]:
    """Return the recipe's objections to config, data and number of processes; none where no trainer is installed."""
    prepare = spec.stages.prepare
    try:
        config = recipe.checked(spec)
        if config is None:
            return []
        if prepare is None or not prepare.command:  # what the user's own program makes need not be there yet
            recipe.check_data(config)
    except ValueError as error:
        return [str(error)]
    return list(_stage_problems(spec))


def _stage_problems(spec: Spec) -> Iterator[str]:
    """Return the recipes' objections to the stages that they are to run."""
    prepare, evaluate = spec.stages.prepare, spec.stages.evaluate
    if prepare is not None and not prepare.command and not recipe.can_prepare(spec):
        yield f"spec.stages.prepare: {spec.trainer.recipe} has nothing to prepare; remove it, or give it a command"
    if evaluate is not None and not evaluate.command:
        try:
            recipe.settings(staged(spec, Stage.EVALUATE))
        except ValueError as error:
            yield str(error).replace("spec.trainer.", "spec.stages.evaluate.", 1)


def check(spec: Spec) -> None:
    """Check that this machine can run it.

    Raises:
        ValueError: it cannot; the first problem, as a sentence.
    """
    problem = next(problems(spec), None)
    if problem:
        raise InputError(problem)


def check_price(spec: Spec, price: Fraction | None) -> None:
    """Check the price of this machine against the run's limit.

    Raises:
        ValueError: the machine costs more per hour than the run allows.
    """
    most = highest(spec)
    if price is not None and most is not None and price > most:
        raise InputError(
            f"--price-per-hour: {as_text(price)} is more than spec.capacity.maxPricePerHour, {as_text(most)}; "
            "raise that"
        )


def problems(spec: Spec) -> Iterator[str]:
    """Yield all reasons why this machine cannot run it."""
    if spec.suspend:
        yield "spec.suspend: the run is told to hold; remove the field to train here"
    yield from _program_problems(spec)
    yield from recipe_problems(spec)
    found = len(gpus()) if gpus_wanted(spec) else 0
    wanted = spec.workers.nodes * spec.workers.gpus_per_node
    if wanted > found:
        yield (
            f"spec.workers: {wanted} GPUs are asked for (nodes x gpusPerNode) and this machine has {found}; "
            f"write gpusPerNode: {found // spec.workers.nodes}" + (" to train on the CPU" if found == 0 else "")
        )
    if spec.stages.evaluate and spec.stages.evaluate.gpus > found:
        yield f"spec.stages.evaluate.gpus: {spec.stages.evaluate.gpus} are asked for and this machine has {found}"
    try:
        environment.secrets(spec, os.environ)
    except ValueError as error:
        yield str(error)


def _program_problems(spec: Spec) -> Iterator[str]:
    commands = {"trainer": spec.trainer.command}
    commands |= {f"stages.{stage.lower()}": own.command for stage in Stage if (own := spec.stages.of(stage))}
    for path, command in commands.items():
        if command and shutil.which(command[0], path=search_path()) is None:
            is_there = "/" in command[0] and Path(command[0]).is_file()
            yield f"spec.{path}.command: {(_NOT_EXECUTABLE if is_there else _NO_PROGRAM).format(command[0])}"
    if spec.trainer.recipe and not _trainer_installed():
        yield "spec.trainer.recipe: the trainer is not installed here; say pip install 'piton-operator[trainer]'"


def _trainer_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None and find_spec("piton_trainer") is not None


def gpus_wanted(spec: Spec) -> int:
    """Return the GPU count of the stage that needs the most GPUs."""
    evaluate = spec.stages.evaluate.gpus if spec.stages.evaluate else 0
    return max(spec.workers.nodes * spec.workers.gpus_per_node, evaluate)


def gpus() -> tuple[str, ...]:
    """Return the GPUs that this command may use, in the form of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(index) for index, line in enumerate(_gpu_lines(listing.stdout)) if line)


def _gpu_lines(listing: str) -> list[str]:
    return [line for line in listing.splitlines() if line.startswith("GPU ")]
