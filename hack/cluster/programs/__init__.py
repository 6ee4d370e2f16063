"""Programs that exist as published Go modules: Kubernetes, etcd, containerd, and the controllers that run beside Piton.

Each family has a folder here with a `go.mod`, whose `tool` lines name the commands, and a `go.sum`. A family is built
once, into the cache, keyed by both files; only the families that a caller asks for are built.

    python -m hack.cluster.programs build FAMILY …       build these now, as CI does beside other work
    python -m hack.cluster.programs pin FAMILY VERSION   write go.mod and go.sum of another version
"""

from hack.cluster.programs.build import Say, folder, need
from hack.cluster.programs.families import FAMILIES, KUBERNETES, Family, kubernetes, named

__all__ = ["FAMILIES", "KUBERNETES", "Family", "Say", "folder", "kubernetes", "named", "need"]
