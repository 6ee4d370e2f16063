"""A trainer of the standard library that keeps Piton's contract: reports, saves, heeds SIGTERM, proves its end.

Its weights are a hash chain over the steps that were trained: a step left out or taken twice in one life changes them.
Orders in the environment would not survive a change of the run's spec, so everything is an argument.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

CHECKPOINTS = Path(os.environ["PITON_CHECKPOINT_DIR"])
ATTEMPT = int(os.environ["PITON_ATTEMPT"])
RANK = int(os.environ["RANK"])

told: list[int] = []


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--hold-at", type=int, action="append", default=[], help="wait there for the end, once each")
    parser.add_argument("--hold-attempts", type=int, default=1000, help="so many attempts hold, and those after do not")
    parser.add_argument("--crash-at", type=int)
    parser.add_argument("--crash-attempts", type=int, default=1000)
    parser.add_argument("--deaf", action="store_true", help="do not heed SIGTERM")
    parser.add_argument("--child", action="store_true", help="have a helper in a session of its own")
    parser.add_argument("--mute", action="store_true", help="report nothing")
    parser.add_argument("--linger", action="store_true", help="do not leave after the final manifest, the first time")
    parser.add_argument("--break-at", type=int, help="leave the loop there, unless it is to go on")
    parser.add_argument("--exit-after", type=int, default=0, help="exit code after the final manifest")
    parser.add_argument("--script", default="failed", help="the end of the script that goes with it")
    parser.add_argument("--exit-attempts", type=int, default=1000, help="so many attempts end with that")
    parser.add_argument("--end", choices=["finished", "diverged", "silent"], default="finished")
    return parser.parse_args()


def newest() -> tuple[int, str]:
    folders = sorted(path for path in CHECKPOINTS.glob("step-*") if (path / "MANIFEST.json").exists())
    if not folders:
        return 0, ""
    return int(folders[-1].name.removeprefix("step-")), (folders[-1] / "weights").read_text()


def save(step: int, weights: str) -> None:
    folder = CHECKPOINTS / f"step-{step:09d}"
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(weights)
    (folder / "MANIFEST.json").write_text("{}")


def report(step: int, steps: int, resumed: int) -> None:
    numbers = {
        "step": step,
        "total_steps": steps,
        "checkpoint_step": newest()[0],
        "loss": 3 / step,
        "val_loss": 2 / step,
    }
    if resumed:
        numbers["resumed_from_step"] = resumed
    metrics = [{"name": name, "value": str(value)} for name, value in numbers.items()]
    body = json.dumps({"trainerStatus": {"lastUpdatedTime": "2026-11-21T12:00:00Z", "metrics": metrics}}).encode()
    url = os.environ["KUBEFLOW_TRAINER_SERVER_URL"]
    urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=10).read()


def end(outcome: str, code: int, step: int, script: str = "running", resumed: int | None = None) -> NoReturn:
    words: dict[str, object] = {
        "outcome": outcome,
        "step": step,
        "checkpointStep": newest()[0],
        "detail": f"the fake {outcome}",
    }
    if outcome == "finished":
        words |= {"weightsDigest": "sha256:of-the-fake", "script": script, "resumedFrom": resumed or None}
    Path(os.environ["PITON_TERMINATION_LOG"]).write_text(json.dumps(words))
    sys.exit(code)


def claims(step: int | str) -> bool:
    """True if no attempt of the run was to hold at this step before."""
    mark = CHECKPOINTS / f"holding-{step}"
    if mark.exists():
        return False
    mark.touch()
    return True


def hold(step: int) -> None:
    """Wait for the end."""
    (CHECKPOINTS / f"held-{step}").write_text(f"{os.getpid()}")
    while not told:
        time.sleep(0.005)


def follow() -> NoReturn:
    """What the other ranks do: nothing, until rank 0 is done or they are told to stop."""
    while not told and not (CHECKPOINTS / "COMPLETE.json").exists():
        time.sleep(0.005)
    sys.exit(143 if told else 0)


def main() -> None:
    orders = arguments()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if orders.deaf else lambda signum, _: told.append(signum))
    if orders.child:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(command, start_new_session=True)
        (CHECKPOINTS / f"child-{ATTEMPT}").write_text(str(child.pid))
    if RANK:
        follow()
    train(orders, *newest())


def train(orders: argparse.Namespace, step: int, weights: str) -> None:
    resumed = step
    reason = "all steps done"
    while step < orders.steps:
        if step == orders.break_at and "PITON_GO_ON_AFTER" not in os.environ:
            reason = "left by break"
            break
        step += 1
        weights = hashlib.sha256(f"{weights}{step}".encode()).hexdigest()
        if step == orders.crash_at and orders.crash_attempts >= ATTEMPT:
            print("the fake hit its bug", flush=True)
            sys.exit(1)
        if step % orders.save_every == 0:
            save(step, weights)
        # The report may be what it is killed for.
        holds = step in orders.hold_at and orders.hold_attempts >= ATTEMPT and claims(step)
        if not orders.mute:
            report(step, orders.steps + orders.linger, resumed)
        if holds:
            hold(step)
        if told:
            save(step, weights)
            end("stopped", 143, step)
    if orders.end == "silent":
        sys.exit(0)
    if orders.end == "diverged":
        end("diverged", 79, step)
    save(step, weights)
    proof = {"format": 1, "attempt": ATTEMPT, "step": step, "weightsDigest": f"sha256:{weights}"}
    best = {"bestStep": step, "bestMetric": 0.25, "reason": reason}
    (CHECKPOINTS / ".complete").write_text(json.dumps({**proof, **best}))
    (CHECKPOINTS / ".complete").replace(CHECKPOINTS / "COMPLETE.json")
    rest(orders, step, resumed)


def rest(orders: argparse.Namespace, step: int, resumed: int) -> NoReturn:
    """What a script does after its training: it exports."""
    if orders.linger and claims("rest"):
        report(step, step, resumed)  # all of it is done: what a drill may wait for
        while not told:
            time.sleep(0.005)
        end("finished", 143, step, resumed=resumed)
    if orders.exit_after and orders.exit_attempts >= ATTEMPT:
        print("the export failed", flush=True)
        end("finished", orders.exit_after, step, orders.script, resumed)
    if orders.linger or orders.exit_after:
        (CHECKPOINTS / "exported").write_text(str(ATTEMPT))
    end("finished", 0, step, "ended", resumed)


if __name__ == "__main__":
    main()
