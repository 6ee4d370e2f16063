"""A charlm goes on with a text: what it remembers changes nothing but the time, and equal seeds say the same."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from piton_trainer.data.text.sources import DOCUMENT
from piton_trainer.data.text.vocabulary import REPLACEMENT, Vocabulary
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.generate import CharlmGenerator, open_model
from piton_trainer.recipes.charlm.memory import Memory
from piton_trainer.recipes.charlm.model import CharGPT
from piton_trainer.serving.text_generator import GenerateRequest
from piton_trainer.serving.trained_model import TrainedModel

CONFIG = CharlmConfig(
    depth=2, aspect_ratio=16, head_dim=8, sequence_length=16, device_batch_size=2, total_batch_tokens=64, eval_tokens=64
)
VOCABULARY = Vocabulary("abcdefghij")


@pytest.fixture
def model() -> CharGPT:
    found = CharGPT(CONFIG, symbols=len(VOCABULARY))
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(0.0, 0.3, generator=rng)
    return found.eval()


def said(text_generator: CharlmGenerator, **generation: object) -> str:
    return "".join(
        text_generator.generate(
            GenerateRequest.model_validate({"prompt": "abc", "max_tokens": 40, "seed": 7, **generation})
        )
    )


@torch.inference_mode()
def test_what_is_remembered_gives_the_logits_of_the_whole_text(model: CharGPT) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]])
    whole = model(ids)
    memories = [Memory(CONFIG, device=torch.device("cpu"), dtype=torch.float32) for _ in range(CONFIG.depth)]

    pieces = [model.go_on(ids[:, :6], memories)]
    pieces += [model.go_on(ids[:, place : place + 1], memories) for place in range(6, 16)]

    assert all(memory.is_full for memory in memories)
    torch.testing.assert_close(torch.cat(pieces), whole[0, 5:], atol=1e-5, rtol=1e-4)


def test_the_likeliest_is_what_the_whole_model_says_also_when_the_text_is_longer_than_it_sees(model: CharGPT) -> None:
    text = "abc"
    text_generator = CharlmGenerator(model, VOCABULARY)
    unspeakable = [0, *range(len(VOCABULARY), 16)]
    seen = VOCABULARY.encode(text).tolist()
    for letter in islice(text_generator.generate(GenerateRequest(prompt=text, max_tokens=40, temperature=0)), 40):
        if len(seen) > CONFIG.sequence_length:
            seen = seen[-(CONFIG.sequence_length // 2) :]
        with torch.no_grad():
            logits = model(torch.tensor([seen]))[0, -1]
        logits[unspeakable] = -torch.inf
        assert letter == VOCABULARY.symbols[int(logits.argmax())]
        seen.append(VOCABULARY.symbols.index(letter))


def test_equal_seeds_say_the_same_and_others_do_not(model: CharGPT) -> None:
    text_generator = CharlmGenerator(model, VOCABULARY)
    first = said(text_generator)
    assert len(first) == 40
    assert said(text_generator) == first
    assert said(text_generator, seed=8) != first


def test_two_answers_in_turn_do_not_disturb_each_other(model: CharGPT) -> None:
    text_generator = CharlmGenerator(model, VOCABULARY)
    wishes = [GenerateRequest(prompt=prompt, max_tokens=20, seed=1) for prompt in ("abc", "jihgfedcba")]
    alone = ["".join(text_generator.generate(generation)) for generation in wishes]
    both = list(zip(*(text_generator.generate(generation) for generation in wishes), strict=True))
    assert ["".join(letters) for letters in zip(*both, strict=True)] == alone


def test_top_1_and_no_temperature_are_the_likeliest(model: CharGPT) -> None:
    text_generator = CharlmGenerator(model, VOCABULARY)
    assert said(text_generator, top_k=1) == said(text_generator, temperature=0)
    assert said(text_generator, top_k=1) != said(text_generator, top_k=1000)


def test_what_nobody_can_name_is_never_said(model: CharGPT) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all symbols are equally likely, padding and the replacement symbol among them
    assert set(said(CharlmGenerator(model, VOCABULARY), max_tokens=500)) == set("abcdefghij")


def test_a_text_of_documents_begins_with_a_document_and_ends_before_the_next(model: CharGPT) -> None:
    letters = Vocabulary(f"{DOCUMENT}bcdefghij")
    model.config = CONFIG.model_copy(update={"documents": True})
    text_generator, plain = CharlmGenerator(model, letters), CharlmGenerator(model, letters)
    plain._begin = ""
    whole = said(plain, prompt=f"{DOCUMENT}bcd", max_tokens=400)

    assert DOCUMENT in whole
    assert said(text_generator, prompt="bcd", max_tokens=400) == whole.partition(DOCUMENT)[0]


def test_a_prompt_longer_than_the_model_sees_is_read_from_its_end(model: CharGPT) -> None:
    text_generator = CharlmGenerator(model, VOCABULARY)
    assert said(text_generator, prompt="j" * 50 + "abcdefgh" * 2) == said(text_generator, prompt="abcdefgh" * 2)


@pytest.mark.parametrize(("prompt", "named"), [("abcX", "'X'"), ("\n", r"'\\n'"), (REPLACEMENT, f"'{REPLACEMENT}'")])
def test_characters_that_the_model_has_never_seen_are_named(model: CharGPT, prompt: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"the model has never seen {named};"):
        CharlmGenerator(model, VOCABULARY).check(prompt)


def test_of_many_unknown_characters_the_first_ten_are_named(model: CharGPT) -> None:
    with pytest.raises(ValueError, match=r"never seen 'A', .* 'J' and 16 more;"):
        CharlmGenerator(model, VOCABULARY).check("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_weights_of_other_settings_are_refused(model: CharGPT, tmp_path: Path) -> None:
    found = TrainedModel(
        recipe="charlm",
        config={},
        settings=CONFIG.model_copy(update={"depth": 3}),
        weights=model.state_dict(),
        which="model",
        extras={"vocabulary": VOCABULARY.state_dict()},
        step=1,
        metrics={},
    )
    with pytest.raises(ValueError, match="the weights are not those of the settings"):
        open_model(found, torch.device("cpu"))
