"""The parts of the training benchmarks that would make their figures wrong if they broke."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from benchmarks.calibration import corpus, run
from benchmarks.calibration.experiment import Experiment
from benchmarks.common.library import stored_value
from benchmarks.finetuning import run as finetuning

from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer


@pytest.fixture
def sts(tmp_path: Path) -> Path:
    folder = tmp_path / "sts"
    folder.mkdir()
    for part, sentence in (("validation", "A dog, asleep!"), ("test", "W1 w2 w3 w4")):
        row = {"sentence1": sentence, "sentence2": "w9 w8 w7", "score": 1.0}
        (folder / f"{part}.jsonl").write_text(json.dumps(row))
    return folder


def learning_from(*texts: str, **fields: Any) -> Experiment:
    return Experiment(question="?", method="scalar", measured_on="sts", texts=texts, **fields)


def test_no_sentence_of_the_benchmark_is_trained_on(tmp_path: Path, sts: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("The cat sat there. a dog asleep\nw1 w2, w3 w4.\nMuch too long is this sentence here.\nw9 W8 w7\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"sentence1": "One of the rows.", "label": 1}))
    experiment = learning_from("lines.txt", "rows.jsonl", words=(3, 5))
    found = corpus.texts_to_learn(experiment, tmp_path, tiny_tokenizer())
    assert set(found) == {"The cat sat there.", "One of the rows."}
    assert not corpus.texts_to_learn(dataclasses.replace(experiment, most=0), tmp_path, tiny_tokenizer())


def test_no_pair_with_a_sentence_of_the_benchmark_is_trained_on(tmp_path: Path, sts: Path) -> None:
    rows = [{"a": "One.", "label": 1, "b": "Two!"}, {"a": "w1 w2", "b": "W9, w8 w7."}, {"a": "A dog asleep", "b": "x"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    assert corpus.pairs_to_learn(learning_from(pairs=("rows.jsonl",)), tmp_path) == [("One.", "Two!")]


class Driver:
    """Runs experiments on a tiny model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.shared: dict[str, Any] = {
            "question": "Does it run?",
            "texts": ["texts.txt"],
            "measured_on": "sts",
            "method": "subspace",
            "options": {"num_subspaces": 4, "codebook_size": 8},
            "words": [1, 40],
            "steps": 2,
            "batch": 8,
            "eval_steps": 1,
            "learning_rate": 3e-4,
            "table_learning_rate": 0.03,
            "bf16": False,
        }

    def __call__(self, name: str, **fields: Any) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(self.shared | fields))
        words = [str(path), "--data", ".", "--work", "made", "--model", "model", "--output", "found.json"]
        self.monkeypatch.setattr(sys, "argv", ["run.py", *words])
        run.main()
        return json.loads((self.folder / "found.json").read_text())


@pytest.fixture
def driver(tmp_path: Path, sts: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    tiny_model("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60)))
    for part in ("validation", "test"):
        rows = [{"sentence1": one, "sentence2": "w5 w6", "score": score} for score, one in enumerate(tiny_texts(5))]
        (sts / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(run, "prepare", lambda threads: None)  # It would hold for the tests that follow.
    monkeypatch.chdir(tmp_path)
    return Driver(tmp_path, monkeypatch)


def layer(folder: Path) -> torch.Tensor:
    return AutoModel.from_pretrained(folder).encoder.layer[0].output.dense.weight


def test_a_calibration_of_a_tiny_model(tmp_path: Path, driver: Driver) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"one": "w11 w12", "two": "w13"}')
    record = driver("first", pairs=["pairs.jsonl"], shares=[0.25, 0.5, 0.75, 1.0])
    found = record["results"]
    assert found["sentences"] == 60 - 5 + 1  # Five texts are sentences of the benchmark, and there is one pair.
    assert record["sentences_seen"] == 16
    assert [point["step"] for point in found["curve_on_validation"]] == [0, 1, 2]
    assert list(found["loss_by_step"]) == ["1", "2"] and all(loss > 0 for loss in found["loss_by_step"].values())
    assert set(found["sts_test"]) == {"dense", "after_fit", "after_calibration", "part_of_the_way"}
    scores = found["validation_by_share_of_the_way"]
    assert len(scores) == 8 and found["sts_validation"]["part_of_the_way"] == max(scores.values())
    assert (tmp_path / "made" / "first" / "chosen" / "tokenizer.json").is_file()
    # Further at rates of nothing is where it ended, not the fit.
    still = {"learning_rate": 1e-12, "table_learning_rate": 1e-12}
    more = driver("further", after="first", **still)["results"]
    assert more["report_after_fit"] == found["report_after_fit"]
    assert more["sts_test"]["after_fit"] == found["sts_test"]["after_fit"]
    ended = layer(tmp_path / "made" / "first" / "now")
    assert torch.allclose(layer(tmp_path / "made" / "further" / "now"), ended, atol=1e-7)
    assert not torch.allclose(ended, layer(tmp_path / "made" / "first" / "fit"), atol=1e-7)
    # Or beneath a new table, which the same layers stay above.
    driver("anew", after="first", new_table=True, options={"num_subspaces": 2, "codebook_size": 8}, **still)
    assert torch.allclose(layer(tmp_path / "made" / "anew" / "now"), ended, atol=1e-7)
    model = AutoModel.from_pretrained(tmp_path / "made" / "anew" / "now")
    assert stored_value(model.get_input_embeddings(), "num_subspaces") == 2


def test_balanced_kinds_of_text_count_for_the_same() -> None:
    much, little = torch.tensor([60.0, 20.0, 0.0]), torch.tensor([0.0, 1.0, 3.0])
    assert corpus.summed([much, little], balance=False).tolist() == [60.0, 21.0, 3.0]
    assert corpus.summed([much, little], balance=True).tolist() == [60.0, 40.0, 60.0]


def test_methods_are_calibrated_alike(tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"clusters": {}, "svd": {"method": "factorized", "options": {"fit": "svd", "rank": 2}}}
    fields = {"variants": variants, "choose": False, "learning_rate": 0.01}
    found = driver("methods", **fields)["results"]["variants"]
    assert list(found) == list(variants)
    for name, result in found.items():
        assert set(result["sts_test"]) == {"dense", "after_fit", "after_calibration"}
        # Nothing is chosen: the last score counts.
        assert result["sts_validation"]["after_calibration"] == result["curve_on_validation"][-1]["validation"]
        saved = AutoModel.from_pretrained(tmp_path / "made" / "methods" / name / "now")
        assert not torch.equal(saved.encoder.layer[0].output.dense.weight, layer(tmp_path / "model"))
        assert saved.get_input_embeddings().nbytes == result["report_after_fit"]["compact_bytes"]
    monkeypatch.setattr(run, "run", None)  # What is done is not done again.
    driver("methods", **fields)
    with pytest.raises(SystemExit, match="made with other settings"):
        driver("methods", **fields, seed=1)


def test_a_masked_lm_is_measured_by_its_perplexity(tmp_path: Path, driver: Driver) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60, 20)))
    fields = {"measure": "perplexity", "measured_on": "texts.txt", "words": None, "max_length": 16}
    found = driver("masked", **fields, method="scalar", options={"bits": 8})["results"]
    assert set(found["perplexity_held_out"]) == {"dense", "after_fit", "after_calibration"}
    assert all(value > 1 for value in found["perplexity_held_out"].values())
    assert "curve_on_validation" not in found, "nothing is chosen on the text that gives the figures"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stpes": 3}, "no field of an experiment: stpes"),
        ({"measure": "accuracy"}, "`measure` is 'accuracy', but allowed are sts, perplexity"),
        ({"new_table": True}, "`new_table` needs `after`"),
        ({"after": "nothing"}, "run the experiment nothing first"),
    ],
)
def test_an_experiment_that_cannot_be_run_says_so(driver: Driver, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        driver("wrong", **fields)


def test_differences_are_taken_seed_by_seed() -> None:
    scores = {
        "dense": {"rte": [50.0, 60.0, 70.0], "cola": [10.0, 10.0, 10.0]},
        "100x": {"rte": [49.0, 59.0, 69.0], "cola": [10.0, 11.0, 9.0]},
    }
    table = finetuning.summary(scores)
    assert table["100x"]["rte"]["difference"] == -1.0 and table["100x"]["rte"]["interval_95"] == [-1.0, -1.0]
    assert table["100x"]["mean"]["difference"] == -0.5 and table["100x"]["mean"]["values"] == [29.5, 35.0, 39.0]
    low, high = table["100x"]["cola"]["interval_95"]
    assert low == -high and high == pytest.approx(2.48, abs=0.01)
    assert "difference" not in table["dense"]["rte"]
    text = "\n".join(finetuning.lines(table))
    assert "60.00 ± 10.00" in text and "-1.00 ± 0.00" in text
    assert "-1.00" in "\n".join(
        finetuning.lines(
            finetuning.summary(
                {arm: {task: values[:1] for task, values in tasks.items()} for arm, tasks in scores.items()}
            )
        )
    )


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "prepare", lambda threads: None)
    monkeypatch.setattr(finetuning, "run", lambda folder, task, seed, *_: {"score": 50.0 + seed, "device": "CPU"})
    words = f"--arms dense=one small=two --data {tmp_path} --work {tmp_path}/made --tasks rte"
    command = ["run.py", *words.split(), "--output", str(tmp_path / "found.json"), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", command)
    finetuning.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["results"]["scores"]["small"] == {"rte": [50.0, 51.0]} and found["devices"]["small"] == ["CPU"]
    other_model = [word.replace("small=two", "small=three") for word in command]
    for changed in ([*command, "--epochs", "9"], [*command, "--batch", "8"], other_model):
        monkeypatch.setattr(sys, "argv", changed)
        with pytest.raises(SystemExit, match="take another folder"):
            finetuning.main()


def test_rows_held_out_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rte = tmp_path / "glue" / "rte"
    rte.mkdir(parents=True)
    for part in ("train", "validation"):
        rows = [{"sentence1": f"{part} {row}", "sentence2": "w1", "label": 0} for row in range(10)]
        (rte / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given: list[tuple[set[str], set[str]]] = []

    def fine_tuned(folder: str, task: str, tokenizer: object, held_out: list, train: list, *_: object) -> tuple:
        given.append(({row["sentence1"] for row in held_out}, {row["sentence1"] for row in train}))
        return 50.0, {"accuracy": 0.5}

    monkeypatch.setattr(finetuning, "prepare", lambda threads: None)
    monkeypatch.setattr(finetuning, "fine_tuned_score", fine_tuned)
    monkeypatch.setattr(finetuning.AutoTokenizer, "from_pretrained", lambda folder: None)
    words = f"--arms dense=one --data {tmp_path} --tasks rte --seeds 0 1"
    for name, more in (("plain", ""), ("chosen", "--hold-out 3")):
        monkeypatch.setattr(sys, "argv", ["run.py", *f"{words} --work {tmp_path}/{name} {more}".split()])
        finetuning.main()
    all_rows = {part: {f"{part} {row}" for row in range(10)} for part in ("train", "validation")}
    assert given[0] == given[1] == (all_rows["validation"], all_rows["train"])
    held_out, train = given[2]
    assert (
        given[3] == given[2] and len(held_out) == 3 and held_out | train == all_rows["train"] and not held_out & train
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "4"])
    with pytest.raises(SystemExit, match="take another folder"):
        finetuning.main()
