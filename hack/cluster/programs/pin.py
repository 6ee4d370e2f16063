"""Writes go.mod and go.sum of a family for another version of its module.

Two things do not come by themselves: `k8s.io/kubernetes` asks for its own parts at v0.0.0 and replaces them by folders
that its module does not contain, and a module's `replace` lines do not reach the modules that depend on it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hack.cluster.programs.build import TOOLCHAIN, go
from hack.cluster.programs.families import Family


def pin(family: Family, version: str) -> None:
    """Write both files.

    Args:
        family: The programs.
        version: Of the module, with its v: v1.37.2.
    """
    family.folder.mkdir(exist_ok=True)
    go_mod = family.folder / "go.mod"
    go_mod.write_text(f"module piton.dev/programs/{family.name}\n\ngo {TOOLCHAIN.removeprefix('go')}\n")
    (family.folder / "go.sum").unlink(missing_ok=True)
    fetched = json.loads(go("mod", "download", "-json", f"{family.module}@{version}"))
    module = json.loads(go("mod", "edit", "-json", fetched["GoMod"]))
    edits = [f"-require={family.module}@{version}", *replacements(module, version)]
    edits += [f"-tool={family.package(program)}" for program in family.commands]
    go("mod", "edit", *edits, cwd=family.folder)
    go("list", "-mod=mod", "-deps", "tool", cwd=family.folder)  # adds what is needed to both files


def replacements(module: Mapping[str, Any], version: str) -> Iterator[str]:
    """The flags that take over the module's own `replace` lines.

    Args:
        module: Its go.mod, as `go mod edit -json` prints it.
        version: Its version; the parts of Kubernetes 1.37.2 have the version 0.37.2.
    """
    required = {entry["Path"]: entry["Version"] for entry in module["Require"]}
    for replace in module.get("Replace") or []:
        old, new = replace["Old"]["Path"], replace["New"]
        if "Version" in new:
            yield f"-replace={old}={new['Path']}@{new['Version']}"
        elif required.get(old) == "v0.0.0":
            yield f"-replace={old}={old}@v0.{version.removeprefix('v1.')}"
