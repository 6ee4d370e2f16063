"""A script for transformers as people write it: it knows nothing of Piton, and goes on from its own checkpoints.

    python plain_transformers.py OUTPUT_DIR

Its first life is slow: it waits in step 8 until transformers may report again, and in step 9 for its end.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import KubeflowCallback
from transformers.trainer_utils import get_last_checkpoint

STEPS, REPORTED, SAVE_EVERY = 20, 8, 5


class Life(TrainerCallback):  # type: ignore[misc]
    """Makes a first life as long as a drill needs, and tells how many steps a life has trained."""

    def __init__(self, *, is_first: bool) -> None:
        self.is_first = is_first
        self.begun = time.monotonic()
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        if self.is_first and self.steps == REPORTED:
            wait_until(lambda: time.monotonic() > self.begun + KubeflowCallback._MIN_UPDATE_INTERVAL)
        elif self.is_first and self.steps > REPORTED:
            wait_until(lambda: False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        print(f"at step {state.global_step}, {self.steps} of them in this life", flush=True)


def wait_until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            sys.exit(f"nobody has ended this training within {seconds:g} s")
        time.sleep(0.02)


def main(output_dir: str) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (16, 8))]
    arguments = TrainingArguments(
        output_dir, max_steps=STEPS, save_steps=SAVE_EVERY, logging_steps=1, use_cpu=True, disable_tqdm=True
    )
    last = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Life(is_first=last is None)])
    trainer.train(resume_from_checkpoint=last)


if __name__ == "__main__":
    main(sys.argv[1])
