"""The split of queries: held out, for selection, and for training. Pure.

Everything goes by text, not by number: two queries of equal text are one as far as a model can tell, so they are in the
same part, and a guess about a text that is validated is not trained on.

    fold 3 of 10     held out   queries of part 3 with judgments
                     inner      some queries of the other parts with judgments: they choose the best moment
                     train      all other queries, guesses among them, whose text is in neither
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from piton_trainer.data.ranking.judgments import Judgments
from piton_trainer.errors import BadConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """The queries of one fold, by their numbers."""

    number: int
    train: Tensor
    inner: Tensor
    held_out: Tensor


def split(judgments: Judgments, *, folds: int, wanted: Collection[int], seed: int, inner_fraction: float) -> list[Fold]:
    """The wanted folds. Parts differ by one text at most; the same texts and seed make the same parts.

    Raises:
        BadConfig: there are too few queries.
    """
    texts = [normalised(text) for text in judgments.texts]
    judged = sorted({text for text, is_judged in zip(texts, judgments.judged, strict=True) if is_judged})
    if len(judged) < 2 * folds:
        raise BadConfig(
            f"trainer.config.folds: {folds} is too many for {len(judged)} judged queries; each needs two at least"
        )
    part = {text: place % folds for place, text in enumerate(_drawn(judged, f"{seed}"))}
    return [_fold(number, texts, judgments, part, seed, inner_fraction) for number in sorted(wanted)]


def _fold(
    number: int, texts: list[str], judgments: Judgments, part: dict[str, int], seed: int, inner_fraction: float
) -> Fold:
    others = [text for text, where in part.items() if where != number]
    count = max(1, round(len(others) * inner_fraction))
    inner = set(_drawn(others, f"{seed} {number}")[:count])
    roles = ["held_out" if part.get(text) == number else "inner" if text in inner else "train" for text in texts]
    queries = {
        role: [q for q, mine in enumerate(roles) if mine == role and (role == "train" or judgments.judged[q])]
        for role in ("train", "inner", "held_out")
    }
    if not queries["train"]:
        raise BadConfig(f"trainer.config.innerFraction: {inner_fraction:g} leaves nothing to train on")
    return Fold(number=number, **{role: torch.tensor(found, dtype=torch.long) for role, found in queries.items()})


def normalised(text: str) -> str:
    """Normalise a text: case and white space do not make two texts different queries."""
    return " ".join(text.casefold().split())


def _drawn(texts: Collection[str], seed: str) -> list[str]:
    """In an order that looks random and is the same everywhere."""
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
