"""Environment of a replica: the rendezvous variables that torch and torchrun read, in Kubeflow's order.

They are placed after the user's variables, so they override those of the same name. Init containers get none.
"""

from collections.abc import Iterator

from piton.engine.job import MASTER, WORKER, Elastic, Job, Replicas

Pair = tuple[str, str]


def environment(job: Job, kind: str, index: int) -> list[dict[str, str]]:
    """Return the variables of one replica, for each of its containers."""
    return [{"name": name, "value": value} for name, value in _pairs(job, kind, index)]


def _pairs(job: Job, kind: str, index: int) -> Iterator[Pair]:
    yield "PYTHONUNBUFFERED", "1"
    master = job.of(MASTER)
    if master is not None:
        yield from _rendezvous(job, master, rank=index if kind == MASTER else index + 1)
    if job.processes_per_node is not None:
        yield "PET_NPROC_PER_NODE", job.processes_per_node
    if job.elastic is not None:
        yield from _elastic(job, job.elastic)
    else:
        yield "PET_NNODES", str(job.total)


def _rendezvous(job: Job, master: Replicas, *, rank: int) -> Iterator[Pair]:
    """Yield the rendezvous variables. RANK and PET_NODE_RANK are the node's number; torchrun sets the process ranks."""
    address = job.replica_name(MASTER, 0)
    yield "MASTER_PORT", str(master.port)
    yield "PET_MASTER_PORT", str(master.port)
    yield "MASTER_ADDR", address
    yield "PET_MASTER_ADDR", address
    yield "WORLD_SIZE", str(job.total * _processes(job))
    yield "RANK", str(rank)
    yield "PET_NODE_RANK", str(rank)


def _processes(job: Job) -> int:
    """Processes per node as far as a number says so; of `auto`, `gpu` and `cpu` nobody knows before the pod runs."""
    text = job.processes_per_node or ""
    return int(text) if text.isascii() and text.isdigit() else 1


def _elastic(job: Job, elastic: Elastic) -> Iterator[Pair]:
    workers = job.of(WORKER)
    assert workers is not None, "an elastic job without workers is refused before"
    host, port = elastic.host or job.replica_name(WORKER, 0), elastic.port or workers.port
    yield "PET_RDZV_ENDPOINT", f"{host}:{port}"
    yield "PET_RDZV_BACKEND", elastic.backend
    yield "PET_NNODES", f"{elastic.min_replicas}:{elastic.max_replicas}"
    if elastic.max_restarts is not None:
        yield "PET_MAX_RESTARTS", str(elastic.max_restarts)
    if elastic.processes_per_node is not None:
        yield "PET_NPROC_PER_NODE", str(elastic.processes_per_node)
    if elastic.id is not None:
        yield "PET_RDZV_ID", elastic.id
    if elastic.conf:
        yield "PET_RDZV_CONF", ",".join(f"{key}={value}" for key, value in elastic.conf)
    if elastic.standalone:
        yield "PET_STANDALONE", ""
