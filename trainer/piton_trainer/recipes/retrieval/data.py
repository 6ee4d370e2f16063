"""Everything that a training reads, opened: examples, collections, and how their texts get into the model."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from piton_trainer.data.retrieval.collection import Collection
from piton_trainer.data.retrieval.sources import collection_of, examples_of
from piton_trainer.data.skipped import SkippedData
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.common.encoder_source import folder_of
from piton_trainer.recipes.common.text_encoder import Embedded, Encoding, Tokens, embed
from piton_trainer.recipes.protocol import DataContext
from piton_trainer.recipes.retrieval.batches import Identity
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.evaluation import name_of
from piton_trainer.recipes.retrieval.inputs import Readable, TokenInputs, VectorInputs
from piton_trainer.recipes.retrieval.mining import with_mined


class Data:
    """On one rank; all ranks open theirs together."""

    def __init__(self, config: RetrievalConfig, place: DataContext) -> None:
        """Read what is not on the volume yet, and encode what the base model has to.

        Raises:
            BadConfig: something is not there, or cannot be read.
        """
        self._config = config
        self._place = place
        self.encoding = encoding_of(config)
        self.folder: Path = place.run_cache.together(partial(folder_of, config.base_model, "baseModel"))[place.rank]
        self.skipped_data = SkippedData(config.max_skipped)
        key, self.examples = examples_of(
            config.data, config.data_split, config.examples, place.run_cache, self.skipped_data
        )
        self.identity = Identity(
            content=_digest(key.content, config),
            stamps=_digest(key.stamps, config),
            earlier=frozenset(_digest(earlier, config) for earlier in key.earlier),
        )
        self.texts: Readable = self._open(self.examples.texts)
        """Of the examples."""
        if config.mined:
            self.examples = with_mined(self.examples, self._embed(self.examples.texts), config.mined, key.folder, place)
        self.collections = _collections(config, place, self.skipped_data)
        self.base: dict[str, VectorInputs] = {}
        """The texts of each collection as the base model sees them, where that is measured."""
        if config.zero_shot:
            self.base = {name: self._vectors(found.texts) for name, found in self.collections.items()}
        self.documents = {
            name: self.base[name] if config.freeze_base and name in self.base else self._open(found.texts)
            for name, found in self.collections.items()
        }
        """The same as the model takes them."""

    def _open(self, texts: Sequence[str]) -> Readable:
        if self._config.freeze_base:
            return self._vectors(texts)
        # Each with tokens of its own: examples are read in another thread.
        return TokenInputs(texts, Tokens(self.folder, self.encoding), self._place.device)

    def _vectors(self, texts: Sequence[str]) -> VectorInputs:
        return VectorInputs(self._embed(texts), self._place.device)

    def _embed(self, texts: Sequence[str]) -> Embedded:
        return embed(texts, self.encoding, self._place.run_cache, self._place.device)

    def tokens_per_example(self, sample: int, passages: int) -> float:
        """Of a query and so many passages, as long as those of the first examples are."""
        tokens = Tokens(self.folder, self.encoding)
        total = 0.0
        for numbers, times in ((self.examples.queries[:sample], 1), (self.examples.positives[:sample], passages)):
            texts = [self.examples.texts[int(number)] for number in numbers]
            total += times * float(tokens(texts, torch.device("cpu"))["attention_mask"].sum()) / len(texts)
        return total


def encoding_of(config: RetrievalConfig) -> Encoding:
    """Return the settings by which the base model makes vectors."""
    return Encoding(
        encoder=config.base_model,
        max_tokens=config.max_tokens,
        batch_texts=config.encoder_batch,
        stored=config.embeddings,
        setting="baseModel",
    )


def _collections(config: RetrievalConfig, place: DataContext, skipped_data: SkippedData) -> dict[str, Collection]:
    found = {
        name_of(source): collection_of(source, config.eval_split, place.run_cache, skipped_data)
        for source in config.datasets
    }
    if len(found) < len(config.datasets):
        raise BadConfig("trainer.config.datasets: two of them have the same last part of their name; rename one")
    return found


def _digest(key: str, config: RetrievalConfig) -> str:
    """Return the digest of examples of this key, of their negatives, and of the base model."""
    parts = [key, config.base_model, config.max_tokens, config.freeze_base, config.negatives, config.mined]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
