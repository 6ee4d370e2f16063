"""What only a GPU can tell, by one command: `make gpu`. With --dry the same on the CPU, small, to see that it runs.

Each part is a process of its own with a limit. The results are written after each of them, so that a run that is cut
off keeps what it has. Exit code: 0 when every part ran and what it checks holds, 1 otherwise, 2 when this machine or
this interpreter will not do.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu import report
from bench.gpu.parts import PARTS, Part

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
DRY_SECONDS = 300.0
LEAST_SECONDS = 10.0
"""What is left has to be more than a process needs to import torch, or the next part is not begun."""
OLDEST_TORCH = (2, 11)
LAST_LINES = 30
"""Of a part that failed, for the terminal."""


def main() -> int:
    """Run the parts; the exit code."""
    options = _parser().parse_args()
    if options.list:
        print(*(f"{part.name:<24}{part.minutes:>5.1f} min at most" for part in PARTS), sep="\n")
        return 0
    try:
        machine = _machine(dry=options.dry)
    except (ImportError, RuntimeError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    path = _path(machine, options.results)
    results: dict[str, Any] = {"machine": machine, "parts": _earlier(path, machine)}
    for name, found in _run_all(parts, minutes=options.minutes, dry=options.dry):
        if found["state"] != "not run" or name not in results["parts"]:
            results["parts"][name] = found
        _write(path, results)
    print()
    print(report.table(results))
    bad = [part.name for part in parts if results["parts"][part.name]["state"] != "ran"]
    print(f"{len(parts) - len(bad)} of {len(parts)} parts ran; {path}")
    if bad:
        print(f"{len(bad)} did not: {', '.join(bad)}")
    if not options.dry and options.results == RESULTS:
        report.write(ROOT / "docs" / "gpu.md", RESULTS)
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gpu", description="What only a GPU can tell.")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="on the CPU, small: only to see that everything runs")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="only this one; may be repeated")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON file goes")
    parser.add_argument("--list", action="store_true", help="name the parts, and run none")
    return parser


def _machine(*, dry: bool) -> dict[str, Any]:
    """What the results are true of.

    Raises:
        ImportError, RuntimeError: nothing can be measured here; says why.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{sys.executable} has no torch: give another one, make gpu PYTHON=…") from error
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise RuntimeError(f"torch {torch.__version__} is too old; 2.11 or newer is needed")
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "dry": dry,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cores": len(os.sched_getaffinity(0)),
    }
    if dry:
        return found | {"device": "the CPU, dry"}
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU here; `make gpu DRY=1` runs the same on the CPU")
    about = torch.cuda.get_device_properties(0)
    return found | {
        "device": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _run_all(parts: Sequence[Part], *, minutes: float, dry: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's name and result, in order: one part at a time on a GPU, one on each core of a CPU."""
    end = time.monotonic() + 60 * minutes
    running: set[subprocess.Popen[bytes]] = set()

    def run(number: int, part: Part) -> tuple[str, dict[str, Any]]:
        left = end - time.monotonic()
        print(f"gpu: {number}/{len(parts)} {part.name}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
        if left < LEAST_SECONDS:
            return part.name, {"state": "not run", "reason": f"the {minutes:g} minutes are over", "rows": []}
        return part.name, _run(part, running, seconds=min(left, DRY_SECONDS if dry else 60 * part.minutes), dry=dry)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if dry else 1) as pool:
        try:
            yield from pool.map(run, range(1, len(parts) + 1), parts)
        except BaseException:  # Ctrl-C: the pool would wait for the parts that run
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running.copy():
                _kill(process)
            raise


def _run(part: Part, running: "set[subprocess.Popen[bytes]]", *, seconds: float, dry: bool) -> dict[str, Any]:
    """One part in a process of its own, which takes its children with it when its time is over.

    The process is in `running` for as long as it runs.
    """
    with tempfile.TemporaryDirectory(prefix="piton-gpu-") as folder:
        out, log = Path(folder) / "rows.json", Path(folder) / "log"
        arguments = [part.runs, json.dumps(part.arguments), str(out), *(["--dry"] if dry else [])]
        command = [sys.executable, "-m", "bench.gpu.one", *arguments]
        start = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(dry), stdout=output, stderr=output, start_new_session=True
            )
            running.add(process)
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _kill(process)
                process.wait()
                running.discard(process)
        took = round(time.monotonic() - start, 1)
        if code == 0 and out.exists():
            return {"state": "ran", "seconds": took, "rows": json.loads(out.read_text())}
        said = log.read_text(errors="replace")
        reason = f"cut off after {seconds:.0f} s" if code is None else _reason(said, code)
        last = "".join(f"    {line}\n" for line in said.splitlines()[-LAST_LINES:])
        print(f"gpu: {part.name}: {reason}\n{last}", end="", file=sys.stderr, flush=True)
        return {"state": "failed", "reason": reason, "seconds": took, "rows": []}


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """The part's whole process group, whatever it left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(dry: bool) -> Mapping[str, str]:
    """Nothing is fetched. On the CPU one thread is enough to see that it runs."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | ({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if dry else {})


def _reason(log: str, code: int) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1][:300] if lines else 'it said nothing'}"


def _path(machine: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower()).strip("-")
    return folder / f"gpu-{device}-{machine['date']}.json"


def _earlier(path: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on the same machine on the same day: a part that is not run again keeps its rows."""
    if not path.exists():
        return {}
    earlier: dict[str, Any] = json.loads(path.read_text())
    return earlier["parts"] if earlier["machine"] == machine else {}


def _write(path: Path, results: Mapping[str, Any]) -> None:
    aside = path.with_suffix(".new")
    parts = {part.name: results["parts"][part.name] for part in PARTS if part.name in results["parts"]}
    aside.write_text(json.dumps({**results, "parts": parts}, indent=1) + "\n")
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
