"""Each script in examples/ runs in a process of its own on tiny models and files, and writes what it found."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import hf_compact_embeddings as hce
from hf_compact_embeddings.finetuning.classification import find_task, task_of_rows

from .cases import first_cases
from .launching import launch, run, run_together
from .tiny_models import tiny_model
from .tools import REPOSITORY, tiny_texts, tiny_tokenizer

EXAMPLES = REPOSITORY / "examples"
GLUE, STS = EXAMPLES / "run_glue.py", EXAMPLES / "run_sts.py"
CASE = first_cases("project", "dense")[0]
TRAINING = ["--do_train", "--do_eval", "--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu"]
COMPACT = ["--compact_method", CASE.method, "--compact_options", *(f"{k}={v}" for k, v in CASE.options.items())]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def pairs(first: str, second: str, labels: int, count: int = 16) -> list[dict[str, Any]]:
    one, other = tiny_texts(count), tiny_texts(count, seed=1)
    return [
        {first: a, second: b, "label": i % labels, "score": i % 5, "language": ("en", "xx")[i % 4 > 1]}
        for i, (a, b) in enumerate(zip(one, other, strict=True))
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a dense model and its tokenizer."""
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def predictions(path: Path) -> list[str]:
    header, *lines = path.read_text().splitlines()
    assert header == "index\tprediction" and [line.split("\t")[0] for line in lines] == [*map(str, range(len(lines)))]
    return [line.split("\t")[1] for line in lines]


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "all_results.json").read_text())


def test_glue(folder: Path) -> None:
    data = write_rows(folder / "rte.jsonl", pairs("sentence1", "sentence2", 2))
    words = ["--model_name_or_path", folder / "model", "--task_name", "rte", "--output_dir", folder / "out"]
    words += ["--train_file", data, "--validation_file", data, "--test_file", data, "--do_predict", *TRAINING]
    run(GLUE, *words, *COMPACT, home=folder / "home")
    found = results(folder / "out")
    assert {"train_loss", "eval_accuracy", "predict_accuracy"} <= set(found)
    config = AutoConfig.from_pretrained(folder / "out")
    assert config.model_type == "compact-bert" and config.id2label == {0: "entailment", 1: "not_entailment"}
    guesses = predictions(folder / "out" / "predict_results_rte.txt")
    truths = [config.id2label[json.loads(line)["label"]] for line in data.read_text().splitlines()]
    right = sum(guess == truth for guess, truth in zip(guesses, truths, strict=True))
    assert right / len(truths) == found["predict_accuracy"]
    # A folder that is compact already goes on as it is; the labels of GLUE's test part are not known.
    words = ["--model_name_or_path", folder / "out", "--task_name", "rte", "--output_dir", folder / "again"]
    hidden = write_rows(folder / "test.jsonl", [row | {"label": -1} for row in pairs("sentence1", "sentence2", 2)])
    words += ["--validation_file", data, "--do_eval", "--test_file", hidden, "--do_predict", "--use_cpu"]
    run(GLUE, *words, home=folder / "home")
    again = results(folder / "again")
    assert again["eval_accuracy"] == found["eval_accuracy"] and "predict_accuracy" not in again
    assert predictions(folder / "again" / "predict_results_rte.txt") == guesses


def test_texts_of_ones_own(folder: Path) -> None:
    rows = [{"text": text, "label": ("sport", "art", "law")[i % 3]} for i, text in enumerate(tiny_texts(18))]
    data = write_rows(folder / "train.jsonl", rows)
    words = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", *TRAINING, *COMPACT]
    run(GLUE, *words, "--train_file", data, "--validation_file", data, home=folder / "home")
    assert AutoConfig.from_pretrained(folder / "out").id2label == {0: "art", 1: "law", 2: "sport"}
    (folder / "new.csv").write_text("text\n" + "\n".join(row["text"] for row in rows))
    words = ["--model_name_or_path", folder / "out", "--output_dir", folder / "new", "--use_cpu", "--do_predict"]
    run(GLUE, *words, "--test_file", folder / "new.csv", home=folder / "home")
    guesses = predictions(folder / "new" / "predict_results_texts.txt")
    right = sum(guess == row["label"] for guess, row in zip(guesses, rows, strict=True))
    assert right / len(rows) == results(folder / "out")["eval_accuracy"]


@pytest.mark.parametrize("hashing", ["md", "lsh"])
def test_glue_without_a_vocabulary(hashing: str, folder: Path) -> None:
    """What `pretrain_hashformer.py` leaves goes through the scripts of every other method."""
    tokenizer = hce.CompactHashTokenizer(hashing=hashing, model_max_length=32)
    hashed = hce.HashConfig.for_tokenizer(tokenizer, variant="proj")
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    hce.CompactBertModel(hce.CompactBertConfig(**shape, compact_embeddings=hashed)).save_pretrained(folder / "hashed")
    tokenizer.save_pretrained(folder / "hashed")
    data = write_rows(folder / "rte.jsonl", pairs("sentence1", "sentence2", 2))
    words = ["--model_name_or_path", folder / "hashed", "--task_name", "rte", "--output_dir", folder / "out"]
    run(GLUE, *words, "--train_file", data, "--validation_file", data, *TRAINING, home=folder / "home")
    found = results(folder / "out")["eval_accuracy"]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out")
    saved = AutoTokenizer.from_pretrained(folder / "out")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    encoded = saved(*([row[name] for row in rows] for name in ("sentence1", "sentence2")), truncation=True)
    guesses = model(**saved.pad(encoded, return_tensors="pt")).logits.argmax(-1).tolist()
    assert found == sum(guess == row["label"] for guess, row in zip(guesses, rows, strict=True)) / len(rows)


def test_xnli_in_one_language(folder: Path) -> None:
    data = write_rows(folder / "xnli.jsonl", pairs("premise", "hypothesis", 3))
    words = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", "--compact_ratio", "4"]
    words += ["--train_file", data, "--validation_file", data, "--language", "xx", "--train_language", "en", *TRAINING]
    run(EXAMPLES / "run_xnli.py", *words, home=folder / "home")
    assert results(folder / "out")["eval_samples_per_second"] > 0
    process = launch(EXAMPLES / "run_xnli.py", *words, "--language", "de", home=folder / "home")
    assert "`--language` is 'de', but the data has en, xx" in process.communicate(timeout=240)[0]


class MetricOfTheHub:
    """A metric as `evaluate.load` gives it: it takes keywords only."""

    def __init__(self) -> None:
        self.rows = 0

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        assert len(predictions) == len(references) > 0 and not kwargs
        self.rows = len(references)
        return {"accuracy": 0.125}


@pytest.mark.parametrize("hub_metric", [False, True], ids=["own", "hub"])
@pytest.mark.parametrize(
    ("script", "columns", "script_name", "words"),
    [
        ("run_glue.py", ("sentence1", "sentence2", 2), ("glue", "rte"), ["--task_name", "rte"]),
        ("run_xnli.py", ("premise", "hypothesis", 3), ("xnli", None), []),
    ],
)
def test_metrics_come_from_a_script_of_the_hub_only_if_asked_for(
    script: str,
    columns: tuple[str, str, int],
    script_name: tuple[str, str | None],
    words: list[str],
    hub_metric: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process, where the Hub is not switched off."""
    asked, metric = [], MetricOfTheHub()

    def load(path: str, config_name: str | None = None, **options: Any) -> MetricOfTheHub:
        asked.append((path, config_name))
        return metric

    stub = types.ModuleType("evaluate")
    stub.load = load
    monkeypatch.setitem(sys.modules, "evaluate", stub)
    data = write_rows(folder / "rows.jsonl", pairs(*columns))
    words = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", *TRAINING, *words]
    words += ["--train_file", data, "--validation_file", data, "--report_to", "none", "--disable_tqdm", "1"]
    words += ["--hub_metric"] if hub_metric else []
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(EXAMPLES / script))["main"]()
    accuracy = results(folder / "out")["eval_accuracy"]
    assert (asked, metric.rows) == (([script_name], 16) if hub_metric else ([], 0))
    assert accuracy == 0.125 if hub_metric else accuracy * 16 == int(accuracy * 16)


def test_a_metric_of_the_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = np.eye(2), np.array([0, 1])

    def load(*words: str) -> None:
        raise ConnectionError("no route")

    stub = types.ModuleType("evaluate")
    stub.load = load
    monkeypatch.setitem(sys.modules, "evaluate", stub)
    with pytest.raises(hce.CompactEmbeddingsError, match=r"cannot load glue/rte \(no route\)"):
        find_task("rte").measure(logits, labels, hub_metric=True)
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(hce.CompactEmbeddingsError, match=r"hf_compact_embeddings\[hub-metric\]"):
        find_task("rte").measure(logits, labels, hub_metric=True)
    own = task_of_rows([{"text": "w5", "label": "a"}, {"text": "w6", "label": "b"}])
    with pytest.raises(hce.CompactConfigError, match="no metric for texts of your own"):
        own.measure(logits, labels, hub_metric=True)


def test_squad(folder: Path) -> None:
    rows = []
    for i, context in enumerate(tiny_texts(6, length=40)):
        word = context.split()[25]
        answers = {"text": [word], "answer_start": [context.index(f" {word}") + 1]}
        rows.append({"id": f"q{i}", "context": context, "question": "w7 w8", "answers": answers})
    data = write_rows(folder / "squad.jsonl", rows)
    words = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", "--max_seq_length", "32"]
    new = write_rows(folder / "new.jsonl", [{key: row[key] for key in ("id", "context", "question")} for row in rows])
    words += ["--train_file", data, "--validation_file", data, "--test_file", new, "--do_predict", *TRAINING, *COMPACT]
    run(EXAMPLES / "run_qa.py", *words, home=folder / "home")
    assert {"eval_f1", "eval_exact_match"} <= set(results(folder / "out"))
    answers, again = (
        json.loads((folder / "out" / f"{name}_predictions.json").read_text()) for name in ("eval", "predict")
    )
    assert answers.keys() == {row["id"] for row in rows} and again == answers


@pytest.mark.parametrize(("script", "architecture"), [("run_mlm.py", "bert"), ("run_clm.py", "gpt2")])
def test_language_models(script: str, architecture: str, folder: Path) -> None:
    (folder / "text.txt").write_text("\n".join(tiny_texts(80)))
    if architecture != "bert":
        tiny_model(architecture).save_pretrained(folder / "model")
    words = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", *TRAINING, *COMPACT]
    words += ["--train_file", folder / "text.txt", "--validation_file", folder / "text.txt"]
    words += ["--compact_texts", folder / "text.txt"]
    run(EXAMPLES / script, *words, home=folder / "home")
    assert results(folder / "out")["eval_perplexity"] > 1


def test_sts(folder: Path) -> None:
    data = write_rows(folder / "sts.jsonl", pairs("sentence1", "sentence2", 2))
    words = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", *TRAINING, *COMPACT]
    run(STS, *words, "--train_file", data, "--validation_file", data, home=folder / "home")
    assert -1 <= results(folder / "out")["eval_spearmanr"] <= 1
    # Scores from 0 to 1 would teach cosines of at most 0.2.
    small = write_rows(
        folder / "small.jsonl", [row | {"score": row["score"] / 5} for row in pairs("sentence1", "sentence2", 2)]
    )
    process = launch(STS, *words, "--train_file", small, "--validation_file", data, home=folder / "home")
    assert "The largest score is 0.8, but `--highest_score` is 5.0" in process.communicate(timeout=240)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_file", "no.jsonl"], "'no.jsonl' is no file"),
        (["--train_file", "wrong.jsonl", "--task_name", "sst2"], "but the task needs sentence, label; its columns are"),
        (["--validation_file", "wrong.jsonl"], "`--train_file` is missing"),
        (["--train_file", "wrong.jsonl", "--compact_options", "x"], "need a method or a ratio"),
    ],
)
def test_bad_input_is_told_in_the_last_line(words: list[str], message: str, folder: Path) -> None:
    write_rows(folder / "wrong.jsonl", [{"text": "w5", "label": 1}])
    common = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", "--do_train", "--use_cpu"]
    process = launch(GLUE, *common, *words, home=folder / "home")
    last = process.communicate(timeout=240)[0].strip().splitlines()[-1]
    assert process.returncode != 0 and message in last


def test_two_processes_give_the_loss_curve_of_one(folder: Path) -> None:
    data = write_rows(folder / "rte.jsonl", pairs("sentence1", "sentence2", 2, count=32))
    words = ["--model_name_or_path", folder / "model", "--task_name", "rte", "--train_file", data, "--do_train"]
    words += ["--max_steps", "4", "--logging_steps", "1", "--learning_rate", "0.01", "--use_cpu", *COMPACT]

    def curve(name: str) -> list[float]:
        state = json.loads((folder / name / "trainer_state.json").read_text())
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

    run(GLUE, *words, "--output_dir", folder / "one", "--per_device_train_batch_size", 8, home=folder / "home")
    words += ["--output_dir", folder / "two", "--per_device_train_batch_size", "4"]
    run_together(GLUE, *words, home=folder / "home")
    one, two = torch.tensor(curve("one")), torch.tensor(curve("two"))
    assert len(one) == 4 and one.std() > 1e-3
    torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_two_processes_pretrain_without_a_vocabulary(streaming: bool, folder: Path) -> None:
    (folder / "corpus.txt").write_text("\n".join(tiny_texts(200)))
    shape = ["hidden_size=24", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32"]
    words = ["--train_files", folder / "corpus.txt", "--hashing", "lsh", "--overrides", *shape, "--max_length", "16"]
    words += ["--output_dir", folder / "run", "--per_device_train_batch_size", "4", "--max_steps", "3", "--use_cpu"]
    words += ["--logging_steps", "1", "--report_to", "none", *(["--streaming"] if streaming else [])]
    run_together(EXAMPLES / "pretrain_hashformer.py", *words, home=folder / "home")
    assert (folder / "run" / "checkpoint-3" / "rng_state_1.pth").is_file(), "a second process has trained"
    state = json.loads((folder / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    first = next(entry for entry in state["log_history"] if "loss" in entry)
    # Three kinds of words: the mean over all rows, not the sum over the processes.
    assert 0.5 < first["loss"] < 1.5
    AutoModelForSequenceClassification.from_pretrained(folder / "run")
