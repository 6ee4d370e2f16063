"""Parameters that several commands have, and the types of them, which refuse what nobody can have meant."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_BUCKET = re.compile(r"s3:(?=/)", re.IGNORECASE)


def _dollars(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """Return the amount as it is written; None where the option is not given."""
    if text is not None and not (re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) and float(text)):
        raise click.BadParameter(f"{text!r} is no amount of dollars; write it like 10.50")
    return text


class NamedPlace(click.ParamType[Any]):
    """A file, a folder or a bucket. An empty text, as of a variable that is not set, would be the current folder.

    The URI of a bucket, in any spelling, is no file: as a path it would lose a slash, and no message would name it.
    """

    def __init__(self, kind: Callable[[str], object]) -> None:
        self.name = "path"
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the place that the text names.

        Raises:
            BadParameter: the text is empty, or names a bucket where only a file or folder can be.
        """
        if value == "":
            self.fail("it is empty; name the file or folder", param, ctx)
        if isinstance(value, str) and (scheme := _BUCKET.match(value)):
            if self._kind is Path:
                self.fail(
                    f"{value} is in a bucket; name a file or folder, or fetch it with piton checkpoint restore",
                    param,
                    ctx,
                )
            value = f"s3:{value[scheme.end() :]}"
        return self._kind(value)


PATH, PLACE = NamedPlace(Path), NamedPlace(str)
"""Types of what is a file or folder here, and of what may be a bucket or a name as well."""


PRICE = click.option(
    "--price-per-hour",
    "price",
    metavar="USD",
    callback=_dollars,
    help="What a node costs, such as 10.50.  [default: capacity.maxPricePerHour]",
)
STEP = click.option(
    "--step",
    metavar="N|best|latest",
    help="Which checkpoint.  [default: the best, where an objective says which; else the newest good one]",
)
WEIGHTS = click.option(
    "--weights", type=click.Choice(["model", "ema"]), help="Which weights.  [default: their average, if there is one]"
)
