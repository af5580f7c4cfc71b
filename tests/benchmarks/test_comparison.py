"""benchmarks/comparison: experiments can be read, items are asked for once, and differences are those of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_compact_embeddings as hce
from benchmarks.comparison import run, table
from benchmarks.comparison.arms import ARMS
from benchmarks.comparison.differences import difference
from benchmarks.comparison.experiment import FOLDER, Experiment, Subject, read_experiments, read_subject
from benchmarks.comparison.tasks import MEASURES, TASKS, _ranks, first_recall, reciprocal_rank, spearman

from ..tiny_models import tiny_model
from ..tools import tiny_tokenizer

SUBJECTS = [path.stem for path in (FOLDER / "models").glob("*.json")]


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_experiment_can_be_read(name: str) -> None:
    subject = read_subject(name)
    experiments = read_experiments(subject)
    assert experiments and set(subject.tasks) <= set(TASKS) == set(MEASURES)
    assert {one.arm for one in experiments} <= set(ARMS) and all(one.label for one in experiments)
    assert len({one.name for one in experiments}) == len(experiments)


def test_measures() -> None:
    ranks = np.array([[1.0], [2.0], [11.0], [4.0]])
    assert reciprocal_rank(ranks) == pytest.approx(100 * (1 + 0.5 + 0.25) / 4) and first_recall(ranks) == 25
    assert spearman(np.array([[1.0, 10], [2, 20], [3, 15]])) == pytest.approx(50)
    found = _ranks(torch.eye(3), torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 0, 1]]), np.array([0, 1, 2]))
    assert found.tolist() == [[2], [1], [1]]


def test_pairs_are_drawn_together() -> None:
    items = np.random.default_rng(0).integers(1, 9, (80, 1)).astype(float)
    dense = {"en": items, "de": items + 1}
    assert difference(reciprocal_rank, dense, dense, ["en", "de"]) == {"mean": 0, "low": 0, "high": 0}
    worse = {name: values + 1 for name, values in dense.items()}
    found = difference(reciprocal_rank, dense, worse, ["en"])
    assert found["low"] < found["mean"] < found["high"] < 0


def test_an_experiment_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"sentence1": f"w{i} w9", "sentence2": f"w{2 * i} w8", "score": i % 5} for i in range(5, 25)]
    (tmp_path / "en.jsonl").write_text("\n".join(map(json.dumps, rows)))
    subject = Subject("tiny", {"similarity": {"files": "{language}.jsonl", "languages": ["en"]}})
    dense, tokenizer = tiny_model("bert", head="BertModel"), tiny_tokenizer()
    judge = run.Judge(subject, tokenizer, tmp_path, tmp_path / "work")
    judge.items("dense", dense)
    experiment = Experiment(
        "scalar_4x", subject, "method", 3.0, {"method": "scalar", "bits": 8, "ratio": 1.5}, "scalar"
    )
    found = run.result_of(experiment, dense, tokenizer, judge)
    loss = found["differences"]["similarity, Spearman"]["difference"]
    assert abs(loss["mean"]) < 5 and loss["low"] <= loss["mean"] <= loss["high"]
    assert found["table_bytes"] == hce.inspect(ARMS["method"](dense, tokenizer, experiment).model).compact_bytes
    assert "| scalar |" in table.as_markdown([found])
    monkeypatch.setitem(TASKS, "similarity", None)  # what was asked once is not asked again
    assert judge.differences("scalar_4x", dense) == found["differences"]
