"""What a user's callbacks of transformers keep, after a resume."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

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
    assert caplog.text.count("callback Average.average: its tensors change in the training") == 1
    assert "Average.model" not in caplog.text


def test_a_callback_whose_state_cannot_be_saved_is_told_of_and_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert hf.train(tmp_path, callbacks=[Odd()], at={4: ends.terminate}).code == 143
    assert hf.train(tmp_path, callbacks=[Odd()]).code == 0
    assert "callback Odd: it begins anew after a resume" in caplog.text
