"""`retrieval` as the loop trains it: it learns, it resumes, its ranks act as one, and others load what it made."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import piton_trainer
from piton.contract.assignment import Assignment
from piton.contract.termination import ExitCode
from piton_trainer import evaluate
from piton_trainer.config import Config
from piton_trainer.data import content
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.contrast import contrastive
from piton_trainer.recipes.retrieval.export import export
from piton_trainer.recipes.retrieval.model import Retriever
from piton_trainer.recipes.retrieval.prepare import prepare
from piton_trainer.recipes.retrieval.recipe import Retrieval
from piton_trainer.recipes.retrieval.schedule import rate_at
from piton_trainer.training.loop import TrainableModel
from support import ranks
from support.attempts import CrashError, assert_same_end, completion, crash, terminate
from support.retrieval import World, a_recipe, attempt, world
from support.seats import FakeRankContext


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("world"))


def made(tiny: World, tmp_path: Path, **changes: Any) -> tuple[Retrieval, nn.Module]:
    recipe = a_recipe(tiny.config(**changes), FakeRankContext(tmp_path))
    model = recipe.build()
    recipe.draw_weights(model)
    return recipe, model


# The whole.


@pytest.mark.parametrize("settings", [{}, {"isotropy": "covariance"}, {"mined": 3, "negatives": 2}])
def test_it_learns_which_document_answers_a_query(tiny: World, tmp_path: Path, settings: dict[str, Any]) -> None:
    found = attempt(tmp_path, tiny.config(steps=30, eval_every=15, **settings))
    assert found["ndcg_10"] > found["zero_shot_ndcg_10"] + 0.05
    assert completion(tmp_path).best_metric == pytest.approx(found["ndcg_10"], abs=0.1)


def test_a_frozen_base_model_is_not_in_the_checkpoint_and_its_projection_learns(tiny: World, tmp_path: Path) -> None:
    found = attempt(tmp_path, tiny.config(freeze_base=True, steps=40, eval_every=40, projection_learning_rate=0.05))
    assert found["ndcg_10"] > found["zero_shot_ndcg_10"]
    recipe, model = made(tiny, tmp_path, freeze_base=True)
    assert sum(weight.numel() for weight in model.parameters()) == 16 * 16 + 16
    assert sum(len(group["params"]) for group in recipe.optimizers(model)[0].param_groups) == 2


@pytest.mark.parametrize("freeze", [False, True])
def test_stopped_and_crashed_it_ends_with_the_very_weights_of_an_undisturbed_run(
    tiny: World, tmp_path: Path, freeze: bool
) -> None:
    config = tiny.config(freeze_base=freeze, ema=0.8)
    undisturbed = attempt(tmp_path / "undisturbed", config)
    with pytest.raises(CrashError):
        attempt(tmp_path / "disturbed", config, at=6, action=crash)
    with pytest.raises(Stopped):
        attempt(tmp_path / "disturbed", config, at=8, action=terminate)
    disturbed = attempt(tmp_path / "disturbed", config)
    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")
    assert {name: value for name, value in disturbed.items() if "second" not in name} == {
        name: value for name, value in undisturbed.items() if "second" not in name
    }


def test_an_evaluation_of_its_checkpoint_measures_what_the_training_did(tiny: World, tmp_path: Path) -> None:
    config = tiny.config(freeze_base=True, steps=4, ema=0.8)
    found = attempt(tmp_path, config)
    orders = Assignment(recipe="retrieval", config=config.model_dump(by_alias=True))
    words = evaluate.evaluate(Config(checkpoint_dir=tmp_path, assignment=orders))
    assert {"ndcg_10", "zero_shot_ndcg_10"} <= words.metrics.keys()
    assert words.metrics == {name: pytest.approx(found[name]) for name in words.metrics}


def on_two(directory: Path, config: RetrievalConfig, **drill: Any) -> list[int]:
    return [end.code for end in ranks.run(2, partial(attempt, directory, config, **drill))]


def test_two_ranks_learn_what_one_learns_and_survive_a_stop(tiny: World, tmp_path: Path) -> None:
    config = tiny.config(freeze_base=True, accumulation=2, steps=8, eval_every=8)
    alone = attempt(tmp_path / "one", config)
    assert on_two(tmp_path / "two", config, at=4, action=terminate) == [ExitCode.STOPPED] * 2
    assert on_two(tmp_path / "two", config) == [0, 0]
    assert completion(tmp_path / "two").best_metric == pytest.approx(alone["ndcg_10"], abs=0.02)


def gradient(config: RetrievalConfig, directory: Path) -> tuple[float, np.ndarray]:
    """Of the first step, through the loop's own trainee."""
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        recipe = a_recipe(config, session)
        trainee = TrainableModel(recipe, session)
        trainee.connect()
        recipe.tune(trainee.optimizers, fraction=0.0, step=3)
        trainee.model.eval()  # dropout would draw on each rank
        [batch] = next(iter(recipe.loader))
        loss = recipe.loss(trainee.runner, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        grad = trainee.model.get_parameter("projection.weight").grad
        assert grad is not None
        return loss.item(), grad.numpy()


@pytest.mark.parametrize("isotropy", ["sigreg", "covariance"])
def test_two_ranks_have_the_gradient_of_one_with_all_passages_as_negatives(
    tiny: World, tmp_path: Path, isotropy: str
) -> None:
    config = tiny.config(isotropy=isotropy, mined=1)
    loss, alone = gradient(config, tmp_path / "one")
    one, other = (end.result for end in ranks.run(2, partial(gradient, config, tmp_path / "two")))
    assert np.allclose(one[1], other[1], atol=1e-6)
    assert np.allclose(one[1], alone, atol=1e-4)
    assert (one[0] + other[0]) / 2 == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mined": 2}, "the examples, their negatives or the base model are not those of the checkpoint"),
        ({"seed": 1}, "trainer.config.seed: 1 is not the checkpoint's 0"),
    ],
)
def test_other_examples_or_another_seed_than_the_checkpoints_are_refused(
    tiny: World, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CrashError):
        attempt(tmp_path, tiny.config(freeze_base=True), at=6, action=crash)
    with pytest.raises(BadConfig, match=sentence):
        attempt(tmp_path, tiny.config(freeze_base=True, **changes))


# Its parts.


def test_before_it_has_learned_it_ranks_as_the_base_model_does(tiny: World, tmp_path: Path) -> None:
    recipe, model = made(tiny, tmp_path)
    found, count = recipe.evaluate(model.eval())
    assert count == 1
    for name in ("ndcg_10", "iso_score", "effective_rank", "mean_cosine", "std"):
        assert found[name].item() == pytest.approx(found[f"zero_shot_{name}"].item(), abs=1e-3), name


@pytest.mark.parametrize(("width", "dim"), [(16, 16), (16, 8), (8, 16)])
def test_the_first_projection_is_a_turn_with_a_mean_square_of_1(width: int, dim: int) -> None:
    model = Retriever(None, width=width, output_dim=dim)
    model.draw_weights(seed=3)
    units = nn.functional.normalize(torch.randn(4000, width, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors = model(units)
    assert vectors.square().mean().item() == pytest.approx(1, abs=0.05)
    if dim >= width:
        assert torch.allclose(vectors @ vectors[:5].T, dim * units @ units[:5].T, atol=1e-4)


def test_answers_to_a_query_do_not_count_against_it(tiny: World, tmp_path: Path) -> None:
    rows = "x\tw1 w2\tw3\nx\tw4 w5\tw3\ny\tw6 w7\tx\nz\tw1 w2\tw8\n"
    (tmp_path / "t.tsv").write_text(rows)
    recipe, _ = made(tiny, tmp_path, data=str(tmp_path / "t.tsv"), batch_size=4, negatives=1)
    [batch] = next(iter(recipe.loader))
    order = recipe.loader._order.numbers(0, 4).tolist()
    queries, own = ["x", "x", "y", "z"], ["w1 w2", "w4 w5", "w6 w7", "w1 w2"]
    passages = [own[row] for row in order] + [["w3", "w3", "x", "w8"][row] for row in order]
    answers = {"x": {"w1 w2", "w4 w5", "x"}, "y": {"w6 w7"}, "z": {"w1 w2"}}
    for place, row in enumerate(order):
        expected = [passage in answers[queries[row]] for passage in passages]
        expected[place] = False
        assert batch.hidden[place].tolist() == expected


def test_negatives_come_in_turn_and_who_lacks_one_does_without(tiny: World, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"query": "a", "positive": "b", "negatives": ["c", "d", "e"]}\n{"query": "f", "positive": "g"}\n'
    )
    recipe, _ = made(tiny, tmp_path, data=str(tmp_path / "t.jsonl"), batch_size=2, negatives=2)
    examples = recipe.data.examples
    first = [examples.texts[int(number)] for number in examples.queries].index("a")
    rows = np.array([first, 1 - first])
    told = [
        [[examples.texts[int(number)] for number in row] for row in examples.some_negatives(rows, 2, turn)]
        for turn in range(3)
    ]
    assert told == [[["c", "d"], ["g", "g"]], [["e", "c"], ["g", "g"]], [["d", "e"], ["g", "g"]]]


def test_mined_negatives_are_near_and_no_answers(tiny: World, tmp_path: Path) -> None:
    recipe, _ = made(tiny, tmp_path, mined=4)
    examples = recipe.data.examples
    plain, _ = made(tiny, tmp_path)
    assert plain.data.examples.most_negatives == 0
    assert examples.most_negatives == 4
    for row in range(len(examples)):
        mined = examples.negatives[examples.starts[row] : examples.starts[row + 1]]
        assert len(set(mined.tolist())) == 4
        assert not examples.answers.look_up(examples.queries[row : row + 1], mined).any()


def test_the_loss_is_the_cross_entropy_of_distances() -> None:
    queries, passages = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.1]])
    hidden = torch.tensor([[False, False, True]])
    found = contrastive(queries, passages, hidden, first=0, scale=4.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-3.0)), abs=1e-6)  # 4 / (2 * 2) * (4 - 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_rates_rise_in_the_warm_up_and_fall_to_zero(tiny: World, schedule: str) -> None:
    config = tiny.config(warmup_steps=10, schedule=schedule)
    assert rate_at(config, fraction=0.0, step=0) == pytest.approx(0.1)
    assert rate_at(config, fraction=0.0, step=50) == pytest.approx(1.0)
    assert rate_at(config, fraction=0.5, step=50) == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert rate_at(config, fraction=1.0, step=50) == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_base_and_projection_have_their_own_rates_and_only_matrices_decay(tiny: World, tmp_path: Path) -> None:
    recipe, model = made(tiny, tmp_path, warmup_steps=0, weight_decay=0.3)
    optimizers = recipe.optimizers(model)
    recipe.tune(optimizers, fraction=0.5, step=5)
    groups = optimizers[0].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.0015, 0.0015, 0.005, 0.005])
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.3, 0.0]
    assert all((weight.ndim > 1) == bool(group["weight_decay"]) for group in groups for weight in group["params"])


def first_gradients(tiny: World, tmp_path: Path, **changes: Any) -> dict[str, Tensor]:
    recipe, model = made(tiny, tmp_path, **changes)
    torch.manual_seed(5)
    [batch] = next(iter(recipe.loader))
    recipe.loss(model.train(), batch).backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(tiny: World, tmp_path: Path) -> None:
    plain, thrifty = (first_gradients(tiny, tmp_path, gradient_checkpointing=saving) for saving in (False, True))
    assert plain.keys() == thrifty.keys()
    assert all(torch.equal(plain[name], thrifty[name]) for name in plain)


def test_every_weight_that_learns_has_a_gradient(tiny: World, tmp_path: Path) -> None:
    _, model = made(tiny, tmp_path)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert first_gradients(tiny, tmp_path).keys() == learning
    assert not any("pooler" in name for name in learning)


def test_half_the_bits_train_as_well(tiny: World, tmp_path: Path) -> None:
    found = attempt(tmp_path, tiny.config(precision="bf16", steps=4))
    assert math.isfinite(found["loss"])


def test_epochs_are_told_in_steps(tiny: World, tmp_path: Path) -> None:
    recipe, _ = made(tiny, tmp_path, steps=None, epochs=3.0)
    assert recipe.config.steps == 15  # 40 examples, 8 at a time


def test_throughput_counts_examples(tiny: World, tmp_path: Path) -> None:
    recipe, model = made(tiny, tmp_path)
    assert recipe.tokens_per_step == 8
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "embeddings.w" not in name)
    assert 0 < recipe.flops_per_token(model) <= 6 * weights * 16


def test_what_is_prepared_is_not_read_again(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1.0)  # however lately its files were made
    prepare(tiny.config(), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    a_recipe(tiny.config(), FakeRankContext(tmp_path))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert sorted(name.partition("-")[0] for name in before) == [
        "collection",
        "content",
        "content",
        "content",
        "content",
        "examples",
    ]
    assert before.items() <= after.items()


# What others make of it.


@pytest.mark.filterwarnings("ignore")  # of libraries, about each other
@pytest.mark.parametrize("freeze", [False, True])
def test_sentence_transformers_and_transformers_load_what_is_exported(
    tiny: World, tmp_path: Path, freeze: bool
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    recipe, model = made(tiny, tmp_path, freeze_base=freeze)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    export(recipe.config, model.state_dict(), tmp_path / "out")
    numbers = np.arange(10)
    texts = recipe.data.collections["tiny"].texts[0:10]
    with torch.no_grad():
        expected = model.eval()(recipe.data.documents["tiny"].of(numbers))
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert loaded.similarity_fn_name == "euclidean"
    assert loaded.max_seq_length == recipe.config.max_tokens
    found = loaded.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    assert torch.allclose(found, expected, atol=1e-4)
    base = AutoModel.from_pretrained(tmp_path / "out")
    assert base.config.hidden_size == 16


def test_weights_of_something_else_are_refused(tiny: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"these weights have no projection\.weight"):
        export(tiny.config(), {"x": torch.zeros(1)}, tmp_path / "out")
