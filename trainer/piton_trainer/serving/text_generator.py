"""The interface between an HTTP server and a trained model that generates text."""

import gzip
import io
import secrets
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from piton.contract import InputError

ENCODINGS = ("identity", "gzip", "deflate")
"""Of the body of a request."""
_SEEDS = 2**32
_TEMPERATURE_MIN = 0.001
"""Below it, logits that are divided by it are no finite numbers any more."""


class GenerateRequest(BaseModel):
    """One request: a text, and how to go on with it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    prompt: str = Field(min_length=1, max_length=65_536)
    """The text to go on with."""
    max_tokens: int = Field(default=256, ge=1, le=65_536)
    """At most so many more."""
    temperature: float = Field(default=1.0, ge=0, le=10)
    """0 always takes the likeliest; more than 1 dares more than the training text did. Nothing between 0 and 0.001."""
    top_k: int | None = Field(default=None, ge=1)
    """Only the so many likeliest are drawn from; None: all."""
    seed: int = Field(default_factory=lambda: secrets.randbelow(_SEEDS), ge=0, lt=2**63)
    """Equal wishes get equal answers, of the same model on the same machine. Without a seed one is drawn."""

    @field_validator("temperature")
    @classmethod
    def _can_be_divided_by(cls, temperature: float) -> float:
        if 0 < temperature < _TEMPERATURE_MIN:
            raise ValueError(f"Input should be 0, or at least {_TEMPERATURE_MIN}")
        return temperature

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Parse a request's body.

        Raises:
            ValueError: one sentence that names the field.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"]) or "body"
            raise InputError(f"{field}: {problem['msg']}") from error


class TooLongError(Exception):
    """The body is longer than it may be."""


def unpack(body: bytes, encoding: str, most: int) -> bytes:
    """Return the body without its encoding. aiohttp would take a body of gzip that is cut for a whole one.

    Raises:
        TooLongError: it has more than `most` bytes.
        ValueError: it is damaged or cut.
    """
    try:
        content = {"gzip": _gunzip, "deflate": _inflate}[encoding](body, most + 1) if encoding != "identity" else body
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"the request cannot be decoded: it is cut, or no {encoding} ({error})") from error
    if len(content) > most:
        raise TooLongError
    return content


def _gunzip(body: bytes, most: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
        return stream.read(most)


def _inflate(body: bytes, most: int) -> bytes:
    """Read zlib, or deflate without a header, which some clients send by the same name."""
    is_zlib = body[:1] != b"" and body[0] & 0x0F == zlib.DEFLATED
    stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    content = stream.decompress(body, most)
    if len(content) < most and not stream.eof:
        raise EOFError("its end is missing")
    if stream.unused_data:
        raise EOFError("there is something after its end")
    return content


class TextGenerator(Protocol):
    """A trained model that can be asked. Its methods are called by one thread."""

    def check(self, prompt: str) -> None:
        """Raise ValueError, with a sentence, for a text that the model cannot read."""

    def generate(self, generation: GenerateRequest) -> Iterator[str]:
        """Yield the text after the prompt, piece by piece; each piece is computed on demand."""

    def about(self) -> Mapping[str, Any]:
        """Return the description for GET /health."""
