"""What a user's callbacks of transformers keep, after a resume."""

import copy
import logging
import math
import random
import re
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from support import ends, resume
from support import tiny_transformers as hf


class Average(TrainerCallback):  # type: ignore[misc]
    """An average of the weights."""

    def on_train_begin(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        self.average, self.model = copy.deepcopy(model), model

    def on_step_end(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        for mine, other in zip(self.average.parameters(), model.parameters(), strict=True):
            mine.data.lerp_(other.data, 0.1)


class Saved(Average):
    """It says what it keeps."""

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average.load_state_dict(state)


class Odd(TrainerCallback):  # type: ignore[misc]
    """Its state is none that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        return {"self": self}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


@resume.exact("transformers: callbacks with state_dict and load_state_dict")
def test_what_a_callback_says_comes_back(tmp_path: Path) -> None:
    callbacks = {name: Saved() for name in ("whole", "stopped", "resumed")}
    hf.train(tmp_path / "whole", callbacks=[callbacks["whole"]])
    hf.train(tmp_path / "parts", callbacks=[callbacks["stopped"]], at={4: ends.terminate})
    hf.train(tmp_path / "parts", later=[callbacks["resumed"]])
    whole, resumed = callbacks["whole"].average.state_dict(), callbacks["resumed"].average.state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


@resume.approximate("transformers: tensors inside of a callback without state_dict", "it begins anew, which is told")
def test_tensors_of_a_callback_that_change_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran = hf.train(tmp_path, callbacks=[Average()])
    assert ran.code == 0
    assert caplog.text.count("callback Average.average: it changes in the training") == 1
    assert "Average.model" not in caplog.text


class Counting(TrainerCallback):  # type: ignore[misc]
    """It counts in numbers, and has what does not change."""

    def __init__(self) -> None:
        self.wait, self.best, self.seen, self.every, self.log = 0, math.inf, deque[float](), 2, logging.getLogger("own")

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.wait += 1
        self.best = min(self.best, 1 / self.wait)
        self.seen.append(self.best)


class CountingTrainer(Trainer):  # type: ignore[misc]
    """Its loss follows from how often it was asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls, self.limit = 0, 3

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().compute_loss(*args, **kwargs)


@resume.approximate("transformers: what a callback without state_dict, or a Trainer, counts", "told at the first save")
def test_numbers_that_change_in_callbacks_and_in_a_trainer_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert hf.train(tmp_path / "plain", eval_strategy="steps", eval_steps=2).code == 0
    assert "in no checkpoint" not in caplog.text
    assert hf.train(tmp_path / "own", callbacks=[Counting()], kind=CountingTrainer).code == 0
    told = re.findall(r"WARNING .* (?:callback )?(\w+\.\w+): it changes in the training and is in no", caplog.text)
    assert sorted(told) == ["Counting.best", "Counting.seen", "Counting.wait", "trainer.calls"]


class Noise(TrainerCallback):  # type: ignore[misc]
    """It draws from generators of its own."""

    def __init__(self) -> None:
        self.generator, self.other = torch.Generator().manual_seed(2), random.Random(1)

    def on_step_begin(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        for weight in model.parameters():
            weight.data.add_(torch.rand(weight.shape, generator=self.generator), alpha=self.other.random() / 100)


@resume.exact("transformers: generators that a callback holds")
def test_generators_of_a_callback_go_on_from_where_they_were(tmp_path: Path) -> None:
    whole = hf.train(tmp_path / "whole", callbacks=[Noise()])
    assert hf.train(tmp_path / "parts", callbacks=[Noise()], at={4: ends.terminate}).code == 143
    resumed = hf.train(tmp_path / "parts", callbacks=[Noise()])
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


def test_a_callback_whose_state_cannot_be_saved_is_told_of_and_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert hf.train(tmp_path, callbacks=[Odd()], at={4: ends.terminate}).code == 143
    assert hf.train(tmp_path, callbacks=[Odd()]).code == 0
    assert "callback Odd: it begins anew after a resume" in caplog.text
