"""Texts as vectors of a frozen encoder: masked mean over the tokens, then unit length.

Each text is encoded once for all folds, attempts and variants that share a volume. The ranks share the work, in parts
that are kept as soon as they are done, so that a preemption loses one part; the whole is one file that is mapped.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows

from piton_trainer.errors import BadConfig
from piton_trainer.recipes.common.encoder_source import folder_of
from piton_trainer.run_cache import RunCache

PART_TEXTS = 1024
"""Encoded between two visits to the disk."""
_FORMAT = 1
"""Changes when the same weights and texts make other vectors."""
_FILE = "vectors.npy"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Settings of the conversion of texts to vectors."""

    encoder: str
    """See `encoder_source`."""
    max_tokens: int
    """Longer texts are truncated."""
    batch_texts: int
    """Texts in one forward pass."""
    stored: Literal["fp32", "fp16"]
    """Numbers on the disk and in memory."""
    setting: str = "encoder"
    """The setting of a config that names the encoder, for what there is to say about it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Vectors of a list of texts, some of which may be equal."""

    key: str
    """Says which weights, texts and settings they are of."""
    vectors: Tensor
    """One row per different text; a map of a file on the CPU."""
    rows: Tensor
    """The row of each text of the list."""

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.vectors.shape[1]

    def of(self, numbers: Tensor) -> Tensor:
        """The vectors of the texts with these numbers, in fp32."""
        return self.vectors[self.rows[numbers.to(self.rows.device)]].float()

    def to(self, device: torch.device) -> "Embedded":
        """The same on a device."""
        return Embedded(key=self.key, vectors=self.vectors.to(device), rows=self.rows.to(device))


class Tokens:
    """Makes tokens of texts."""

    def __init__(self, folder: Path, encoding: Encoding) -> None:
        """Load what an encoder's folder says of its tokens.

        Raises:
            BadConfig: it says nothing that can be loaded.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of a data loader
        from transformers import AutoTokenizer

        self._tokenizer: Any = _loaded(AutoTokenizer, folder, encoding)
        self._max_tokens = encoding.max_tokens

    def __call__(self, texts: list[str], device: torch.device) -> dict[str, Tensor]:
        """Of these texts, padded to the longest, with their mask: what a model takes."""
        found = self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
        return dict(found.to(device))


def pretrained(folder: Path, encoding: Encoding) -> nn.Module:
    """The model of a folder as it comes, in fp32.

    Raises:
        BadConfig: there are no files of a model that can be loaded.
    """
    from transformers import AutoModel
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    model: nn.Module = _loaded(AutoModel, folder, encoding, dtype=torch.float32)
    return model


def _loaded(kind: Any, folder: Path, encoding: Encoding, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(folder, **settings)
    except (OSError, ValueError) as error:
        raise BadConfig(f"trainer.config.{encoding.setting}: {encoding.encoder} cannot be loaded: {error}") from error


class Encoder:
    """A frozen encoder from the Hugging Face family, on a device."""

    def __init__(self, folder: Path, encoding: Encoding, device: torch.device) -> None:
        """Load it.

        Raises:
            BadConfig: there are no files of a model that can be loaded.
        """
        self._tokens = Tokens(folder, encoding)
        self._model = pretrained(folder, encoding).eval().to(device)
        self._encoding = encoding
        self._device = device

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """The vectors of these texts, on the CPU; neighbours in the list should be of similar length."""
        size = self._encoding.batch_texts
        return torch.cat([self._batch(list(texts[first : first + size])) for first in range(0, len(texts), size)])

    def _batch(self, texts: list[str]) -> Tensor:
        tokens = self._tokens(texts, self._device)
        return pooled(self._model(**tokens).last_hidden_state, tokens["attention_mask"]).cpu()


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """(texts, tokens, width) -> (texts, width): the mean over the tokens, made one long."""
    return F.normalize(masked_mean(hidden.float(), mask), dim=-1)


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(texts, tokens, width) -> (texts, width): the mean over the tokens that are no padding."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def embed(texts: Sequence[str], encoding: Encoding, run_cache: RunCache, device: torch.device) -> Embedded:
    """The vectors of these texts, from the shelf where they are there. All ranks call it together.

    Raises:
        BadConfig: there is no such encoder.
    """
    different = sorted(set(texts), key=lambda text: (len(text), text))
    folder = run_cache.together(lambda: folder_of(encoding.encoder, encoding.setting))[run_cache.rank]
    key = run_cache.on_main(lambda: _key(different, encoding, folder))
    name = f"embeddings-{key}"
    if not run_cache.has(name):
        parts = run_cache.directory / f"{name}.parts"
        _make_parts(different, encoding, folder, parts, run_cache, device)
        run_cache.folder(name, lambda into: _join(parts, into / _FILE))
        run_cache.on_main(lambda: shutil.rmtree(parts, ignore_errors=True))
    vectors = np.load(run_cache.directory / name / _FILE, mmap_mode="c")
    rows = {text: row for row, text in enumerate(different)}
    numbers = torch.tensor([rows[text] for text in texts], dtype=torch.long, device="cpu")
    return Embedded(key=key, vectors=torch.from_numpy(vectors), rows=numbers)


def _make_parts(
    texts: Sequence[str], encoding: Encoding, folder: Path, parts: Path, run_cache: RunCache, device: torch.device
) -> None:
    """Encode what is not there yet: part n is rank n's, modulo their number."""
    run_cache.on_main(lambda: parts.mkdir(parents=True, exist_ok=True))
    encoder: Encoder | None = None
    count = -(-len(texts) // PART_TEXTS)

    def make(number: int) -> None:
        nonlocal encoder
        path = parts / f"{number:06d}.npy"
        if number >= count or path.exists():
            return
        encoder = encoder or Encoder(folder, encoding, device)
        vectors = encoder.encode(texts[number * PART_TEXTS : (number + 1) * PART_TEXTS])
        aside = path.with_suffix(f".{run_cache.rank}.tmp")
        with aside.open("wb") as file:
            np.save(file, vectors.numpy().astype(_dtype(encoding)))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    for first in range(0, count, run_cache.world_size):
        # The ranks meet after each part, so that none waits for long and all hear of a failure.
        run_cache.together(lambda first=first: make(first + run_cache.rank))  # type: ignore[misc]
        if run_cache.rank == 0:
            done = min(len(texts), (first + run_cache.world_size) * PART_TEXTS)
            _log.info("encoded %s of %s texts", f"{done:,}", f"{len(texts):,}")


def _join(parts: Path, path: Path) -> None:
    """One file from all parts, without having it in memory."""
    pieces = [np.load(part, mmap_mode="r") for part in sorted(parts.glob("*.npy"))]
    shape = (sum(len(piece) for piece in pieces), pieces[0].shape[1])
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=pieces[0].dtype, shape=shape)
    row = 0
    for piece in pieces:
        whole[row : row + len(piece)] = piece
        row += len(piece)
    whole.flush()


def _dtype(encoding: Encoding) -> type[np.floating[Any]]:
    return np.float16 if encoding.stored == "fp16" else np.float32


def _key(texts: Sequence[str], encoding: Encoding, folder: Path) -> str:
    """Of the model's files, the texts and the settings that change a vector."""
    total = hashlib.sha256(f"{_FORMAT} {encoding.max_tokens} {encoding.stored}\n".encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".model", ".safetensors", ".txt") and path.is_file():
            with path.open("rb") as file:
                total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:16]
