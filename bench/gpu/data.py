"""Made-up data in the sizes of the real systems, and the recipes on it."""

import json
import random
from pathlib import Path

import numpy as np
import torch

from bench import loader as jpegs
from bench.gpu.place import Bench
from bench.gpu.setting import Setting
from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.record_writer import Recorder
from piton_trainer.data.image.records import About
from piton_trainer.data.ranking.judgments import Judgments
from piton_trainer.recipes.common.text_encoder import Embedded
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.recipe import Resnet
from piton_trainer.recipes.resnet50.recipe import build as build_resnet
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.recipe import Retrieval
from piton_trainer.recipes.retrieval.recipe import build as build_retrieval
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.recipe import TwoTowers

_WORDS = [f"w{number}" for number in range(2000)]


def resnet50(setting: Setting, **changes: object) -> Resnet:
    """ResNet-50 at 176 pixels, the mean of FFCV's ramp, on JPEGs of ImageNet's mean size."""
    count, size = setting.size((4096, 176), (48, 32))
    training = setting.folder / "training.records"
    if not training.exists():
        content = [jpegs.a_jpeg(number) for number in range(setting.size(64, 4))]
        with Recorder(training, About(source="bench", classes=tuple(str(label) for label in range(10)))) as recorder:
            for number in range(count):
                recorder.append(from_file(content[number % len(content)], number % 10, max_side=None, quality=90))
            recorder.finish()
    batch = setting.size(512, 8)
    small = {"layers": [1, 1], "width": 8} if setting.dry else {"blurPool": True}
    config = {
        "data": str(training),
        "sizes": [[0, size]],
        "batchSize": batch,
        "deviceBatchSize": batch,
        "steps": 1000,
        "warmupEpochs": 0.0,
        "precision": "bf16",
        "compile": True,
        **small,
        **changes,
    }
    return build_resnet(ResnetConfig.model_validate(config), Bench(setting))


def retrieval(setting: Setting, *, compile: bool = True) -> Retrieval:  # noqa: A002 - as the config names it
    """A base model of mpnet's shape that has learned nothing, texts of some 100 tokens, 64 queries a step."""
    data, model = setting.folder / "collection", setting.folder / "model"
    _collection(data, documents=setting.size(4096, 64), words=setting.size(90, 6))
    _bert(setting, model)
    config = RetrievalConfig(
        data=str(data),
        datasets=[str(data)],
        base_model=str(model),
        zero_shot=False,
        batch_size=setting.size(64, 4),
        max_tokens=setting.size(128, 16),
        output_dim=setting.size(512, 16),
        slices=setting.size(256, 8),
        steps=1000,
        precision="bf16",
        compile=compile,
    )
    return build_retrieval(config, Bench(setting))


def twotower(setting: Setting) -> TwoTowers:
    """Ten folds of config O on 5 million rows: each query judged for all 1,131 ids."""
    queries, ids = setting.size((4400, 1131), (80, 12))
    rng = np.random.default_rng(0)
    rows = queries * ids
    judgments = Judgments(
        queries=[f"q{number}" for number in range(queries)],
        texts=[f"query {number}" for number in range(queries)],
        names=[f"id{number:04d}" for number in range(ids)],
        starts=np.arange(0, rows + 1, ids, dtype=np.int64),
        ids=np.tile(np.arange(ids, dtype=np.int32), queries),
        gains=rng.choice(np.array([0.0, 0.7, 1.0], dtype=np.float32), size=rows, p=[0.9, 0.05, 0.05]),
        weights=np.ones(rows, dtype=np.float32),
        originals=np.ones(rows, dtype=np.bool_),
    )
    vectors = torch.randn(queries, 384, generator=torch.Generator().manual_seed(0))
    embedded = Embedded(key="made up", vectors=vectors, rows=torch.arange(queries))
    small = {"heads": 2, "head_width": 8, "query_layers": [16], "id_width": 8, "id_layers": [], "output_dim": 8}
    config = TwoTowerConfig(
        data="made up",
        batch_queries=8,
        learning_rate=8e-4,
        steps=3500,
        eval_every=100,
        precision="bf16",
        folds=setting.size(10, 3),
        **(small if setting.dry else {}),
    )
    return TwoTowers(config, Bench(setting), judgments, embedded)


def _collection(path: Path, *, documents: int, words: int) -> None:
    """As BEIR has them, with a split for training and one for the test."""
    rng = random.Random(0)
    (path / "qrels").mkdir(parents=True, exist_ok=True)
    texts = {f"d{number}": " ".join(rng.choices(_WORDS, k=words)) for number in range(documents)}
    corpus = [{"_id": name, "title": "", "text": text} for name, text in texts.items()]
    queries = [{"_id": f"q{name[1:]}", "text": " ".join(text.split()[:12])} for name, text in texts.items()]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split, chosen in (("train", range(0, documents, 2)), ("test", range(1, min(documents, 64), 2))):
        rows = "".join(f"q{number}\td{number}\t1\n" for number in chosen)
        (path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)


def _bert(setting: Setting, path: Path) -> None:
    """A model of transformers as `save_pretrained` leaves it."""
    from transformers import BertConfig, BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join([*special, *_WORDS]))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    width, layers, heads = setting.size((768, 12, 12), (16, 1, 2))
    shape = BertConfig(
        vocab_size=len(special) + len(_WORDS),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    BertModel(shape).save_pretrained(path)
