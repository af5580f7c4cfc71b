"""The study of factorized embeddings runs from files to figures, and goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from ..tiny_models import tiny_model
from ..tools import REPOSITORY, tiny_texts, tiny_tokenizer


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Return a command line on a tiny model and texts of its own words."""
    tiny_model("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, count, seed in (("train.txt", 400, 0), ("more.txt", 100, 1), ("report.txt", 170, 2)):
        (tmp_path / name).write_text("\n".join(tiny_texts(count, 20, seed)))
    (tmp_path / "sst2").mkdir()
    for name, seed in (("train", 3), ("validation", 4)):
        rows = [{"sentence": text, "label": number % 2} for number, text in enumerate(tiny_texts(40, 6, seed))]
        (tmp_path / "sst2" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = {
        "model": "model",
        "report": "report.txt",
        "task": "sst2",
        "work": "work",
        "output": "study.json",
    }
    words = [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]
    words += ["--train", str(tmp_path / "train.txt"), str(tmp_path / "more.txt")]
    return [*words, *"--ratios 2 --hidden 4 --seeds 0 --fits SVD".split()]


def test_a_study_of_a_tiny_model(command, tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib (bench extra)")
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    study = importlib.import_module("factorized_study")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def run(*fits: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["factorized_study.py", *command, *fits])
        monkeypatch.setattr(study.gathering, "sensitivity_metric", study.gathering.sensitivity_metric)
        study.main()
        return json.loads((tmp_path / "study.json").read_text())["results"]

    first = run()
    assert set(first) == {"dense", "SVD @ 2x"}
    results = run("direction, hidden units, sensitivity")
    for key, cell in first.items():
        assert results[key] == cell, "what is done is not done again"
    hidden, linear, dense = results["direction, hidden units, sensitivity @ 2x"], results["SVD @ 2x"], results["dense"]
    assert hidden["rank"] < linear["rank"] and hidden["bytes"] <= linear["bytes"] < dense["bytes"]
    assert linear["selection"].keys() == {"0.75", "1.0"}
    for cell in (hidden, linear):
        assert 0 < cell["relative_mse"] < 1 and 0.5 < cell["mean_cosine"] < 1 and 0.5 < cell["weighted_cosine"] < 1
        assert 0 <= cell["accuracy"] <= 100 and cell["perplexity"] > 1
    assert linear["weighted_cosine"] > linear["mean_cosine"], "rows by frequency"
    for name in ("study.png", "study.svg"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert str(tmp_path) not in (tmp_path / "study.json").read_text()
