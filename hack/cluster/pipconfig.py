"""What a build has to know of this machine's pip: its settings, and the folders and files that they name.

A build sees neither the machine's configuration nor its environment. Where both are the defaults, there is nothing to
tell; where the machine has mirrors, folders of wheels or an authority of its own, a build without them finds nothing.
Pure, but for the look at what exists.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

_ENVIRONMENT = ":env:"
_INDEXES = ("index-url", "extra-index-url")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_CERTIFICATES = "cert"


def read(listing: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of `pip config list`: what the environment says wins, as it does for pip."""
    sections: dict[str, dict[str, str]] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = ast.literal_eval(value)
    settings = {key: value for section in ("global", _ENVIRONMENT) for key, value in sections.get(section, {}).items()}
    bundle = next((environment[name] for name in _BUNDLES if environment.get(name)), None)
    return settings if _CERTIFICATES in settings or not bundle else {**settings, _CERTIFICATES: bundle}


def write(settings: Mapping[str, str]) -> str:
    """The same as a pip.conf."""
    lines = (f"{key} = {' '.join(value.split())}" for key, value in sorted(settings.items()))
    return "\n".join(["[global]", *lines, ""])


def paths(settings: Mapping[str, str]) -> list[Path]:
    """What the settings name of this machine's file system and is there."""
    named = {path for key, value in settings.items() for word in value.split() for path in _named(key, word)}
    return sorted(path for path in named if path.exists())


def _named(key: str, word: str) -> Iterator[Path]:
    """An index that lies in a folder may link to what lies beside it."""
    path = Path(urlsplit(word).path if word.startswith("file:") else word)
    if path.is_absolute():
        yield path.parent if key in _INDEXES else path
