"""The parts of the training benchmarks that would make their figures wrong if they broke."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import hf_compact_embeddings as hce

from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import calibrate_methods  # noqa: E402
import calibrate_minilm  # noqa: E402
import finetune_glue  # noqa: E402


@pytest.fixture
def sts(tmp_path: Path) -> Path:
    folder = tmp_path / "sts"
    folder.mkdir()
    for part, sentence in (("validation", "A dog, asleep!"), ("test", "W1 w2 w3 w4")):
        row = {"sentence1": sentence, "sentence2": "w9 w8 w7", "score": 1.0}
        (folder / f"{part}.jsonl").write_text(json.dumps(row))
    return folder


def test_no_sentence_of_the_benchmark_is_trained_on(tmp_path: Path, sts: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("The cat sat there. a dog asleep\nw1 w2, w3 w4.\nMuch too long is this sentence here.\nw9 W8 w7\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"sentence1": "One of the rows.", "label": 1}))
    options = argparse.Namespace(texts=[lines, rows], words=(3, 5), most=None, sts=sts, seed=0)
    assert set(calibrate_minilm.sentences(options)) == {"The cat sat there.", "One of the rows."}
    options.most = 0
    assert not calibrate_minilm.sentences(options)


def test_no_pair_with_a_sentence_of_the_benchmark_is_trained_on(tmp_path: Path, sts: Path) -> None:
    rows = [{"a": "One.", "label": 1, "b": "Two!"}, {"a": "w1 w2", "b": "W9, w8 w7."}, {"a": "A dog asleep", "b": "x"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    options = argparse.Namespace(pairs=[path], sts=sts, seed=0)
    assert calibrate_minilm.pairs(options) == [("One.", "Two!")]


@pytest.fixture
def tiny(tmp_path: Path, sts: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the arguments that have a benchmark calibrate a tiny model."""
    tiny_model("bert", head="BertModel").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60)))
    for part in ("validation", "test"):
        rows = [{"sentence1": one, "sentence2": "w5 w6", "score": place} for place, one in enumerate(tiny_texts(5))]
        (sts / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for benchmark in (calibrate_methods, calibrate_minilm):
        monkeypatch.setattr(benchmark, "prepare", lambda threads: None)  # It would hold for the tests that follow.
    words = f"--model {tmp_path}/model --texts {tmp_path}/texts.txt --sts {sts} --words 1 40 --steps 2 --batch 8 --fp32"
    return f"{words} --work {tmp_path}/made --output {tmp_path}/found.json"


def test_a_calibration_of_a_tiny_model(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"{tiny} --method subspace --set num_subspaces=4 --set codebook_size=8 --eval-steps 1"
    (tmp_path / "pairs.jsonl").write_text('{"one": "w11 w12", "two": "w13"}')
    words += f" --pairs {tmp_path}/pairs.jsonl"
    monkeypatch.setattr(sys, "argv", ["calibrate_minilm.py", *words.split()])
    calibrate_minilm.main()
    record = json.loads((tmp_path / "found.json").read_text())
    found = record["results"]
    assert record["sentences"] == 60 - 5 + 1  # Five texts are sentences of the benchmark, and there is one pair.
    assert [point["step"] for point in found["curve_on_validation"]] == [0, 1, 2]
    assert list(found["loss_by_step"]) == ["1", "2"] and all(loss > 0 for loss in found["loss_by_step"].values())
    assert set(found["sts_test"]) == {"dense", "after_fit", "after_calibration", "part_of_the_way"}
    scores = found["validation_by_share_of_the_way"]
    assert len(scores) == 8 and found["sts_validation"]["part_of_the_way"] == max(scores.values())
    assert (tmp_path / "made" / "chosen" / "tokenizer.json").is_file()
    # Further at rates of nothing is where it ended, not the fit.
    replaced = words.replace(
        "/made", f"/further --after {tmp_path}/made --learning-rate 1e-12 --table-learning-rate 1e-12"
    )
    monkeypatch.setattr(sys, "argv", ["calibrate_minilm.py", *replaced.split()])
    calibrate_minilm.main()
    more = json.loads((tmp_path / "found.json").read_text())["results"]
    assert more["report_after_fit"] == found["report_after_fit"]
    assert more["sts_test"]["after_fit"] == found["sts_test"]["after_fit"]
    fit, ended, further = (
        AutoModel.from_pretrained(tmp_path / name).encoder.layer[0].output.dense.weight
        for name in ("made/fit", "made/now", "further/now")
    )
    assert torch.allclose(further, ended, atol=1e-7) and not torch.allclose(further, fit, atol=1e-7)
    # Or beneath a new table, which the same layers stay above.
    anew = replaced.replace("/further", "/anew").replace("num_subspaces=4", "num_subspaces=2") + " --fit-anew"
    monkeypatch.setattr(sys, "argv", ["calibrate_minilm.py", *anew.split()])
    calibrate_minilm.main()
    model = AutoModel.from_pretrained(tmp_path / "anew" / "now")
    assert torch.allclose(model.encoder.layer[0].output.dense.weight, ended, atol=1e-7)
    assert model.get_input_embeddings().config.num_subspaces == 2


def test_balanced_kinds_of_text_count_for_the_same() -> None:
    much, little = torch.tensor([60.0, 20.0, 0.0]), torch.tensor([0.0, 1.0, 3.0])
    assert calibrate_minilm.counts_of([much, little], balance=False).tolist() == [60.0, 21.0, 3.0]
    assert calibrate_minilm.counts_of([much, little], balance=True).tolist() == [60.0, 40.0, 60.0]


def test_methods_are_calibrated_alike(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        "clusters, f = 4": hce.SubspaceConfig(num_subspaces=4, codebook_size=8),
        "svd": hce.FactorizedConfig(fit="svd", rank=2),
    }
    monkeypatch.setattr(calibrate_methods, "settings", lambda values, width: few)
    monkeypatch.setattr(sys, "argv", ["calibrate_methods.py", *tiny.split(), "--learning-rate", "0.01"])
    calibrate_methods.main()
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    dense = AutoModel.from_pretrained(tmp_path / "model")
    assert [row["method"] for row in found["methods"]] == list(few) and set(found["dense"]) == {"validation", "test"}
    for row, folder in zip(found["methods"], ("clusters_f=4", "svd"), strict=True):
        assert {"validation", "test"} == set(row["after_fit"]) == set(row["after_calibration"])
        saved = AutoModel.from_pretrained(tmp_path / "made" / folder)
        assert not torch.equal(saved.encoder.layer[0].output.dense.weight, dense.encoder.layer[0].output.dense.weight)
        assert saved.get_input_embeddings().nbytes == row["compact_bytes"]
    monkeypatch.setattr(calibrate_methods, "measured", None)  # What is done is not done again.
    calibrate_methods.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seed", "1"])
    with pytest.raises(SystemExit, match="made with other settings"):
        calibrate_methods.main()


def test_differences_are_taken_seed_by_seed() -> None:
    scores = {
        "dense": {"rte": [50.0, 60.0, 70.0], "cola": [10.0, 10.0, 10.0]},
        "100x": {"rte": [49.0, 59.0, 69.0], "cola": [10.0, 11.0, 9.0]},
    }
    table = finetune_glue.summary(scores)
    assert table["100x"]["rte"]["difference"] == -1.0 and table["100x"]["rte"]["interval_95"] == [-1.0, -1.0]
    assert table["100x"]["mean"]["difference"] == -0.5 and table["100x"]["mean"]["values"] == [29.5, 35.0, 39.0]
    low, high = table["100x"]["cola"]["interval_95"]
    assert low == -high and high == pytest.approx(2.48, abs=0.01)
    assert "difference" not in table["dense"]["rte"]
    text = "\n".join(finetune_glue.lines(table))
    assert "60.00 ± 10.00" in text and "-1.00 ± 0.00" in text
    assert "-1.00" in "\n".join(
        finetune_glue.lines(
            finetune_glue.summary(
                {arm: {task: values[:1] for task, values in tasks.items()} for arm, tasks in scores.items()}
            )
        )
    )


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_glue, "prepare", lambda threads: None)
    monkeypatch.setattr(finetune_glue, "run", lambda folder, task, seed, *_: {"score": 50.0 + seed, "device": "CPU"})
    words = f"--arms dense=one small=two --data {tmp_path} --sts {tmp_path} --work {tmp_path}/made --tasks rte"
    command = ["finetune_glue.py", *words.split(), "--output", str(tmp_path / "found.json"), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", command)
    finetune_glue.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["results"]["scores"]["small"] == {"rte": [50.0, 51.0]} and found["devices"]["small"] == ["CPU"]
    other_model = [word.replace("small=two", "small=three") for word in command]
    for changed in ([*command, "--epochs", "9"], [*command, "--batch", "8"], other_model):
        monkeypatch.setattr(sys, "argv", changed)
        with pytest.raises(SystemExit, match="take another folder"):
            finetune_glue.main()


def test_rows_held_out_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rte").mkdir()
    for part in ("train", "validation"):
        rows = [{"sentence1": f"{part} {place}", "sentence2": "w1", "label": 0} for place in range(10)]
        (tmp_path / "rte" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given: list[tuple[set[str], set[str]]] = []

    def classify(folder: str, task: object, tokenizer: object, held_out: list, train: list, *_: object) -> dict:
        given.append(({row["sentence1"] for row in held_out}, {row["sentence1"] for row in train}))
        return {"accuracy": 0.5}

    monkeypatch.setattr(finetune_glue, "prepare", lambda threads: None)
    monkeypatch.setattr(finetune_glue, "classify", classify)
    monkeypatch.setattr(finetune_glue.AutoTokenizer, "from_pretrained", lambda folder: None)
    words = f"--arms dense=one --data {tmp_path} --sts {tmp_path} --tasks rte --seeds 0 1"
    for name, more in (("plain", ""), ("chosen", "--hold-out 3")):
        monkeypatch.setattr(sys, "argv", ["finetune_glue.py", *f"{words} --work {tmp_path}/{name} {more}".split()])
        finetune_glue.main()
    all_rows = {part: {f"{part} {place}" for place in range(10)} for part in ("train", "validation")}
    assert given[0] == given[1] == (all_rows["validation"], all_rows["train"])
    held_out, train = given[2]
    assert (
        given[3] == given[2] and len(held_out) == 3 and held_out | train == all_rows["train"] and not held_out & train
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "4"])
    with pytest.raises(SystemExit, match="take another folder"):
        finetune_glue.main()
