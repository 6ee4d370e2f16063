"""The parts of `make gpu`, what matters most first. No torch here: the list is read before any part is run."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something to measure or to check, in a process of its own."""

    name: str
    runs: str
    """`module:function`. It takes a `Setting` and the arguments, and returns rows."""
    minutes: float
    """At most, on a GPU. On a CPU at its small size each part gets five minutes."""
    arguments: tuple[str | int, ...] = ()


PARTS = (
    Part(name="generators", runs="bench.gpu.correctness:generators", minutes=0.5),
    Part(name="process groups", runs="bench.gpu.correctness:process_groups", minutes=0.5),
    Part(name="resume fp32", runs="bench.gpu.correctness:resume", minutes=1.5, arguments=("fp32",)),
    Part(name="resume bf16", runs="bench.gpu.correctness:resume", minutes=1.5, arguments=("bf16",)),
    Part(name="resume fp16", runs="bench.gpu.correctness:resume", minutes=1.5, arguments=("fp16",)),
    Part(name="resume FSDP2 compiled", runs="bench.gpu.correctness:resume", minutes=2.5, arguments=("sharded",)),
    Part(name="checkpoints", runs="bench.gpu.checkpoints:measure", minutes=2.5),
    Part(name="charlm d12", runs="bench.gpu.throughput:charlm", minutes=2, arguments=(12,)),
    Part(name="resnet50", runs="bench.gpu.throughput:resnet50", minutes=2),
    Part(name="charlm d20", runs="bench.gpu.throughput:charlm", minutes=2.5, arguments=(20,)),
    Part(name="settings", runs="bench.gpu.settings:compare", minutes=2.5),
    Part(name="retrieval", runs="bench.gpu.throughput:retrieval", minutes=1.5),
    Part(name="twotower", runs="bench.gpu.throughput:twotower", minutes=1.5),
    Part(name="compile cache", runs="bench.gpu.throughput:compile_cache", minutes=1.5),
    Part(name="memory", runs="bench.gpu.memory:peak", minutes=1),
    Part(name="out of memory", runs="bench.gpu.memory:out_of_memory", minutes=1),
)
