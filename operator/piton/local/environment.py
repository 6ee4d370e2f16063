"""Environment of a trainer on this machine: the variables that the PyTorchJob controller sets on a cluster; secrets.

Names with `${replica_id}` are TorchX's macros; all other text is escaped.
"""

import os
import socket
from collections.abc import Mapping

from torchx import specs

from piton.api.spec import Spec
from piton.contract import InputError, names
from piton.local.processes import literal
from piton.local.run_folder import RunFolder
from piton.rendering.appdef import TrainerPlace, compile_caches, processes_per_node

REPORT_SECONDS = 0.1
_THREADS = "OMP_NUM_THREADS"


def place(
    folder: RunFolder,
    spec: Spec,
    attempt: int,
    *,
    url: str,
    python: str,
    share: int = 1,
    rehearsal: int | None = None,
) -> TrainerPlace:
    """The place of one attempt of this machine, which trains so many runs at the same time.

    In a rehearsal every step is reported.
    """
    own = folder.attempt(attempt)
    return TrainerPlace(
        python=python,
        torchrun=(python, "-m", "torch.distributed.run"),
        checkpoint_dir=literal(str(folder.checkpoints)),
        config_file=literal(str(folder.config_file)),
        termination_log=literal(str(own)) + f"/termination-{specs.macros.replica_id}.json",
        env={
            **_rendezvous(spec),
            **_threads(spec, share),
            **_caches(folder, spec),
            **{name: literal(value) for name, value in secrets(spec, os.environ).items()},
            names.ENV_SERVER_URL: url,
            names.ENV_SERVER_TOKEN: literal(str(folder.token_file)),
            names.ENV_REPORT_SECONDS: str(REPORT_SECONDS if rehearsal is None else 0),
            **({} if rehearsal is None else {names.ENV_REHEARSAL: str(rehearsal)}),
            "PET_LOG_DIR": literal(str(own / "torchelastic")),
        },
    )


def _rendezvous(spec: Spec) -> dict[str, str]:
    """Return the variables of the PyTorchJob controller v1.9; RANK is the node's, torchrun sets that of the workers."""
    processes, port = processes_per_node(spec), str(_free_port())
    return {
        "WORLD_SIZE": str(spec.workers.nodes * processes),
        "RANK": specs.macros.replica_id,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": port,
        "PET_NNODES": str(spec.workers.nodes),
        "PET_NODE_RANK": specs.macros.replica_id,
        "PET_NPROC_PER_NODE": str(processes),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _threads(spec: Spec, share: int) -> dict[str, str]:
    """Return the thread count per process: the cores are divided, because each process would else use all of them."""
    if _THREADS in os.environ or any(variable.name == _THREADS for variable in spec.trainer.env):
        return {}
    processes = share * spec.workers.nodes * processes_per_node(spec)
    return {_THREADS: str(max(1, _cores() // processes))}


def _caches(folder: RunFolder, spec: Spec) -> dict[str, str]:
    """Return the variables with the folders of compiled code: the user's where they are set, else beside the run."""
    caches = compile_caches(spec, str(folder.checkpoints))
    return {name: literal(os.environ.get(name, path)) for name, path in caches.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def secrets(spec: Spec, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values of Secrets and ConfigMaps of the cluster, taken from the user's own environment.

    Raises:
        ValueError: a variable is not set there.
    """
    wanted = [variable for variable in spec.trainer.env if variable.value_from]
    missing = next((variable.name for variable in wanted if variable.name not in environ), None)
    if missing:
        raise InputError(
            f"spec.trainer.env: {missing} comes from a Secret or ConfigMap, and a local run takes it from your "
            f"environment, where it is not set; say export {missing}=…"
        )
    return {variable.name: environ[variable.name] for variable in wanted}
