"""The commands, and what all of them promise: bad input is exit code 2 and one sentence on stderr, a bug is 70.

Each command imports what it needs when it is called: `piton --help` is quick, `piton run` needs no Kubernetes.
"""

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from piton import __version__
from piton.cli.complaints import BAD_INPUT, complain, explain, explain_end
from piton.cli.parameters import PATH, PLACE, PRICE, STEP, WEIGHTS
from piton.contract import output

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="piton")
@click.option("--debug", is_flag=True, help="Print the trace of an error.")
def cli(*, debug: bool) -> None:
    """Train models on machines that will be taken away."""


@cli.command()
@click.argument("file", type=PATH)
@click.option("--dir", "folder", type=PATH, help="The run's folder.  [default: runs/<name>]")
@click.option(
    "--drill",
    "drills",
    multiple=True,
    metavar="KIND@WHEN",
    help="Lose the machine: preempt@50% with notice, kill@30% without; also kill@step120, preempt@90s; in another stage"
    " prepare:kill@5s; for a sweep isotropy:preempt@50%. Repeatable.",
)
@click.option("--notice", default="30s", show_default=True, help="Time between the notice and the end of the machine.")
@click.option(
    "--after-training",
    "after_training",
    default="1h",
    show_default=True,
    help="Time that the script may take after its training, for an evaluation or an export.",
)
@PRICE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--fresh", is_flag=True, help="Start over: delete what Piton made in this run's folder, and no more.")
@click.option("--quiet", is_flag=True, help="Print the summary only.")
def run(*, file: Path, **options: Any) -> int:
    """Train a run, or a sweep, on this machine. Ctrl-C saves and stops; the same command continues.

    The exit code is 1 when it failed, and 3 when it has Succeeded but a drill has not fired.
    """
    from piton.cli import train

    return train.train(file, **options)


@cli.command()
@click.argument("file", type=PATH)
def validate(file: Path) -> int:
    """Say whether a run or a sweep can work as it is written; one line for each problem."""
    from piton.cli import inspect

    return inspect.validate(file)


@cli.command()
@click.argument("file", type=PATH)
@PRICE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(*, file: Path, price: str | None, as_json: bool) -> int:
    """Print what a run takes (time, cost, disk), what would run, and which rules decide so."""
    from piton.cli import inspect

    return inspect.plan(file, price=price, as_json=as_json)


@cli.command()
@click.argument("file", type=PATH)
@click.option("--dir", "folder", type=PATH, help="Where to rehearse.  [default: runs]")
@click.option(
    "--steps", default=3, show_default=True, type=click.IntRange(min=2), help="Steps before the stop, and after it."
)
@PRICE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="Print the table only.")
def preflight(*, file: Path, folder: Path | None, steps: int, price: str | None, as_json: bool, quiet: bool) -> int:
    """Rehearse a run on this machine before it costs anything.

    A few steps with the real config, a stop, a resume, as many steps again and an evaluation, in a folder that goes
    afterwards; then memory, time, cost and disk of the whole run. The exit code is 1 when a check failed.
    """
    from piton.cli import preflight as command

    return command.preflight(file, folder=folder, steps=steps, price=price, as_json=as_json, quiet=quiet)


@cli.command()
@click.argument("place", metavar="FILE|NAME|FOLDER|-", type=PLACE)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "latex", "csv"]),
    default="table",
    show_default=True,
    help="How the table is written; LaTeX wants the package booktabs.",
)
@click.option("--dir", "folder", type=PATH, help="The sweep's folder.  [default: runs/<name>]")
def results(*, place: str, form: str, folder: Path | None) -> int:
    """Print what the variants of a sweep have reached.

    On a cluster: kubectl get tsweep NAME -o json | piton results -
    """
    from piton.cli import sweeps

    return sweeps.results(place, form=form, folder=folder)


@cli.command()
@click.option("--namespace", "namespaces", multiple=True, help="Namespace to serve; repeatable.  [default: all]")
def operator(namespaces: tuple[str, ...]) -> int:
    """Serve the TrainingRuns of a cluster. What no option says comes from the environment."""
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - the client for Kubernetes asks for a home when it is imported
        os.environ["HOME"] = "/"  # as container runtimes set it for a user without one
    from piton.kube import app, settings

    found = settings.PitonSettings.from_env(os.environ)
    app.run(replace(found, namespaces=namespaces) if namespaces else found)
    return 0


@cli.command("export")
@click.argument("place", metavar="CHECKPOINT", type=PATH)
@click.option("--out", required=True, type=PATH, help="The folder to make.")
@STEP
@WEIGHTS
def export_model(*, place: Path, out: Path, step: str | None, weights: str | None) -> int:
    """Write a recipe's trained model, weights only, to a folder that is ready for use.

    CHECKPOINT is a run's folder, a checkpoint directory or one checkpoint, and is verified. The folder is in the
    recipe's own format where it has one, else model.safetensors and a config.json with all that the weights need
    beside them. `piton checkpoint export` writes a checkpoint of any program as it is, also to resume from elsewhere.
    """
    from piton.cli import models

    return models.export(place, out, step=step, weights=weights)


@cli.command()
@click.argument("place", metavar="CHECKPOINT", type=PATH)
@STEP
@WEIGHTS
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Nobody is asked who they are."
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0: any that is free.")
def serve(*, place: Path, step: str | None, weights: str | None, host: str, port: int) -> int:
    """Serve a trained charlm over HTTP: POST /generate streams text, GET /health says what is served.

    CHECKPOINT is what `piton export` takes, or what it has written.
    """
    from piton.cli import models

    return models.serve(place, step=step, weights=weights, host=host, port=port)


@cli.group()
def checkpoint() -> None:
    """Look at the checkpoints of a directory, check them, thin them out, take them elsewhere.

    DIR is a checkpoint directory, or the folder of a run.
    """


@checkpoint.command()
@click.argument("place", metavar="DIR|s3://…", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ls(*, place: str, as_json: bool) -> int:
    """List what is there. Names and sizes are looked at; `verify` looks at every byte."""
    from piton.cli import buckets, checkpoints

    if place.startswith("s3:/"):
        return buckets.ls(place, as_json=as_json)
    return checkpoints.ls(checkpoints.directory_of(Path(place)), as_json=as_json)


@checkpoint.command()
@click.argument("place", metavar="DIR|s3://…", type=PLACE)
@click.option("--step", type=int, help="Only the checkpoint of this step.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(*, place: str, step: int | None, as_json: bool) -> int:
    """Read and hash every file; the exit code is 1 when a checkpoint is bad, or none is there."""
    from piton.cli import buckets, checkpoints

    if place.startswith("s3:/"):
        return buckets.verify(place, step=step, as_json=as_json)
    return checkpoints.verify(checkpoints.directory_of(Path(place)), step=step, as_json=as_json)


@checkpoint.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--keep-last", required=True, type=click.IntRange(min=1), metavar="N", help="Newest ones to keep.")
@click.option(
    "--keep-best", default=1, show_default=True, type=click.IntRange(min=0), metavar="K", help="Best ones to keep."
)
@click.option(
    "--keep-weights",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of the others keep the weights of the N newest, where they were saved apart.  [default: thin ones stay]",
)
@click.option("--metric", help="What is best is said by this metric.  [default: the run's own best, for K = 1]")
@click.option("--goal", type=click.Choice(["Minimize", "Maximize"]), default="Minimize", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
def prune(
    *,
    directory: Path,
    keep_last: int,
    keep_best: int,
    keep_weights: int | None,
    metric: str | None,
    goal: Literal["Minimize", "Maximize"],
    dry_run: bool,
) -> int:
    """Delete what is neither among the newest nor among the best; never the newest good one, nor what is newer."""
    from piton.cli import checkpoints

    rule = checkpoints.RetentionRule(
        keep_last=keep_last, keep_best=keep_best, metric=metric, goal=goal, keep_weights=keep_weights
    )
    return checkpoints.prune(checkpoints.directory_of(directory), rule, dry_run=dry_run)


@checkpoint.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("out", type=PATH)
@click.option("--format", "kind", required=True, type=click.Choice(["safetensors", "hf", "dcp", "torch"]))
@click.option("--step", type=int, help="The checkpoint of this step.  [default: the newest good one]")
@click.option("--weights-only", is_flag=True, help="Only the model's tensors, by the names that its state_dict has.")
@click.option("--weights", "name", default="model", show_default=True, help="Which weights: model, or ema.")
@click.option(
    "--config",
    type=PATH,
    help="For hf: a config.json, or a folder with one and the tokenizer's files.  [default: what the callback saved]",
)
def export(
    *,
    directory: Path,
    out: Path,
    kind: str,
    step: int | None,
    weights_only: bool,
    name: str,
    config: Path | None,
) -> int:
    """Write a checkpoint to OUT in a format that others read, after verifying it.

    hf is a folder that from_pretrained of transformers reads.
    """
    from piton.cli import checkpoints

    weights = name if weights_only or kind == "hf" else None
    place = checkpoints.directory_of(directory)
    return checkpoints.export(place, out, kind=kind, step=step, weights=weights, config=config)


@checkpoint.command()
@click.argument("uri", type=PLACE)
@click.argument("directory", metavar="DIR", type=PATH)
def restore(*, uri: str, directory: Path) -> int:
    """Fetch the newest checkpoint of a mirror, s3://bucket/prefix/run, into DIR, verified."""
    from piton.cli import buckets

    return buckets.restore(uri, directory)


@cli.command()
@click.argument("run")
@click.option("-n", "--namespace", help="The run's namespace.  [default: kubectl's]")
def retry(*, run: str, namespace: str | None) -> int:
    """Take up RUN, which has failed on a cluster or holds since it got nowhere, from its newest checkpoint."""
    from piton.cli import retry as retrying

    return retrying.retry(run, namespace)


def main() -> None:
    """The console script. Its words go to stderr; on stdout are results, which have to arrive."""
    output.open_closed_descriptors()
    output.keep_going_without("stderr")
    output.report_loss_of_stdout()
    sys.exit(_run())


def _run() -> int:
    """Return the exit code of the command, after a sentence about whatever went wrong."""
    try:
        nul = next((argument for argument in sys.argv if "\0" in argument), None)
        code = cli.main(standalone_mode=False) if nul is None else complain(f"{nul!r} holds a NUL; remove it")
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(output.OutputLostError):
            click.echo(error.ctx.get_help() if error.ctx else "")
        code = BAD_INPUT
    except click.ClickException as error:
        code = complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except SystemExit as error:
        code = explain_end(error)
    except Exception as error:  # noqa: BLE001 - the last place where anybody can say what it was
        code = explain(error)
    return int(code or 0)
