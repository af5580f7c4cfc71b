"""evaluate(): every task, compact beside original; metrics against scikit-learn, SciPy and SQuAD's own rules."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification, Trainer

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.evaluation.sentences import sentence_vectors
from hf_compact_embeddings.finetuning.classification import find_task
from hf_compact_embeddings.finetuning.data import read_rows
from hf_compact_embeddings.finetuning.question_answering import QuestionAnsweringTask

from ..cases import compress_tiny, first_cases
from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer

CASE = first_cases("project", "dense")[0]
FAST = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 8}


def pairs(count: int = 12, **more: Any) -> list[dict[str, Any]]:
    one, other = tiny_texts(count), tiny_texts(count, seed=1)
    return [
        {"sentence1": a, "sentence2": b, "label": i % 2, "score": i % 5, **more}
        for i, (a, b) in enumerate(zip(one, other, strict=True))
    ]


def questions(count: int = 4) -> list[dict[str, Any]]:
    rows = []
    for i, context in enumerate(tiny_texts(count, length=40)):
        words = context.split()
        answer = " ".join(words[20 + i : 22 + i])
        start = len(" ".join(words[: 20 + i])) + 1
        assert context[start:].startswith(answer)
        answers = {"text": [answer], "answer_start": [start]}
        rows.append({"id": str(i), "context": context, "question": words[3], "answers": answers})
    return rows


def test_fidelity_sts_and_perplexity() -> None:
    teacher, compact = compress_tiny("bert", CASE, head="BertModel")
    tokenizer = tiny_tokenizer()
    table = hce.evaluate(compact, task="fidelity", against=teacher)
    assert table.metrics["relative_mse"].compact[0] == hce.inspect(compact, against=teacher).relative_mse
    both = hce.evaluate(compact, task="fidelity", against=teacher, tokenizer=tokenizer, data=tiny_texts(10))
    assert -1 <= both.metrics["agreement"].compact[0] < 1
    sts = hce.evaluate(compact, task="sts", tokenizer=tokenizer, data=pairs(), against=teacher)
    same = hce.evaluate(hce.compress(teacher, "scalar"), task="sts", tokenizer=tokenizer, data=pairs(), against=teacher)
    assert sts.metrics["spearmanr"].original == same.metrics["spearmanr"].original
    assert sts.metrics["spearmanr"].compact != same.metrics["spearmanr"].compact
    masked, compact = compress_tiny("bert", CASE)
    result = hce.evaluate(
        compact, task="perplexity", tokenizer=tokenizer, data={"test": tiny_texts(60)}, against=masked
    )
    assert result.metrics["perplexity"].compact[0] > 1 and result.rows == 60
    assert "difference" in str(result) and json.loads(json.dumps(result.to_dict()))["task"] == "perplexity"
    entry = hce.TaskResult(**result.card_fields())
    assert entry.metric == "perplexity" and entry.before == result.metrics["perplexity"].original[0]


def test_classification_is_trained_alike_once_for_each_seed() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    before = {name: value.clone() for name, value in compact.state_dict().items()}
    options = {"task": "glue/mrpc", "tokenizer": tiny_tokenizer(), "data": pairs(8), "train": pairs(24), "args": FAST}
    result = hce.evaluate(compact, against=teacher, seeds=(0, 1, 2), **options)
    assert list(result.metrics) == ["f1", "accuracy"] and result.seeds == (0, 1, 2) and result.trained
    accuracy = result.to_dict()["metrics"]["accuracy"]
    assert len(accuracy["compact"]["values"]) == len(accuracy["original"]["values"]) == 3
    assert accuracy["difference"]["mean"] == pytest.approx(accuracy["compact"]["mean"] - accuracy["original"]["mean"])
    assert all(torch.equal(value, before[name]) for name, value in compact.state_dict().items())
    again = hce.evaluate(compact, seeds=(0, 1, 2), **options)
    assert again.metrics["accuracy"].compact == result.metrics["accuracy"].compact


@pytest.mark.parametrize("task", ["glue/stsb", "squad"])
def test_a_float16_model_is_trained_in_float32(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, compact = compress_tiny("bert", CASE)
    rows = questions(8) if task == "squad" else pairs(24)
    trained: list[set[torch.dtype]] = []

    def train(self: Trainer) -> None:
        trained.append({parameter.dtype for parameter in self.model.parameters()})

    monkeypatch.setattr(Trainer, "train", train)
    hce.evaluate(compact.half(), task=task, tokenizer=tiny_tokenizer(), data=rows, train=rows, args=FAST)
    assert trained == [{torch.float32}]


def test_what_labels_were_called_before_does_not_matter_to_a_model_that_is_trained() -> None:
    _, compact = compress_tiny("bert", CASE, head="BertForSequenceClassification")
    options = {"task": "glue/mrpc", "tokenizer": tiny_tokenizer(), "data": pairs(15), "train": pairs(32), "args": FAST}
    found = []
    for names in (("LABEL_0", "LABEL_1"), ("equivalent", "not_equivalent")):
        compact.config.id2label, compact.config.label2id = dict(enumerate(names)), {names[0]: 0, names[1]: 1}
        found.append(hce.evaluate(compact, **options).metrics)
    # An odd number of rows: turned round, the accuracy is another.
    assert found[0] == found[1]


def test_a_model_with_the_head_is_measured_as_it_is(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", CASE, head="BertForSequenceClassification")
    tokenizer = tiny_tokenizer()
    rows = [{"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": row["label"]} for row in pairs()]
    with pytest.raises(hce.CompactConfigError, match="has 2 labels, but xnli has 3: give `train` rows"):
        hce.evaluate(compact, task="xnli", tokenizer=tokenizer, data=rows)
    compact.save_pretrained(tmp_path)
    compact = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    result = hce.evaluate(compact, task="xnli", tokenizer=tokenizer, data=rows, args={"use_cpu": True})
    encoded = tokenizer(
        [r["premise"] for r in rows], [r["hypothesis"] for r in rows], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = compact.eval()(**encoded).logits.argmax(-1).tolist()
    wanted = np.mean([one == row["label"] for one, row in zip(found, rows, strict=True)])
    assert result.metrics["accuracy"].compact == (pytest.approx(wanted),) and not result.trained


def test_squad_runs_and_finds_the_answers_that_scores_point_to() -> None:
    _, compact = compress_tiny("bert", CASE)
    rows = questions()
    result = hce.evaluate(
        compact, task="squad", tokenizer=tiny_tokenizer(), data=rows, train=rows, args=FAST, max_length=32
    )
    assert set(result.metrics) == {"exact_match", "f1"}
    task = QuestionAnsweringTask(tiny_tokenizer(), max_length=24, stride=8)
    marked, windows = task.windows(rows, with_answers=True), task.windows(rows, with_answers=False)
    assert len(windows) > 2 * len(rows) and max(len(window["input_ids"]) for window in windows) == 24
    starts, ends = (np.zeros((len(windows), 24)) for _ in range(2))
    for i, window in enumerate(marked):
        if window["end_positions"]:
            starts[i, window["start_positions"]] = ends[i, window["end_positions"]] = 9.0
    assert task.measure(rows, task.answers(rows, windows, starts, ends)) == {"exact_match": 100.0, "f1": 100.0}
    assert task.measure(rows, task.answers(rows, windows, -starts, -ends))["exact_match"] < 100


def test_one_scale_of_rank_correlations_in_results_and_cards() -> None:
    """From -1 to 1, as SciPy gives them: of STS as of GLUE's STS-B, and in the fields of a card."""
    teacher, compact = compress_tiny("bert", CASE, head="BertModel")
    tokenizer, rows = tiny_tokenizer(), pairs()
    result = hce.evaluate(compact, task="sts", tokenizer=tokenizer, data=rows, against=teacher)
    for model, found in zip((compact, teacher), ("compact", "original"), strict=True):
        first, second = (
            sentence_vectors(model, tokenizer, [row[f"sentence{number}"] for row in rows]) for number in (1, 2)
        )
        cosines = torch.cosine_similarity(first, second, dim=-1)
        wanted = spearmanr(cosines.numpy(), [row["score"] for row in rows]).statistic
        assert getattr(result.metrics["spearmanr"], found)[0] == pytest.approx(wanted, abs=1e-6)
    fields = result.card_fields()
    assert (fields["after"], fields["before"]) == (
        result.metrics["spearmanr"].compact[0],
        result.metrics["spearmanr"].original[0],
    )
    stsb = find_task("glue/stsb").measure(np.array([[1.0], [2.0], [4.0]]), np.array([0.5, 3.0, 3.5]))
    assert stsb["spearmanr"] == pytest.approx(1.0)


def test_bad_input() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    good = {"task": "glue/rte", "tokenizer": tiny_tokenizer(), "data": pairs(), "train": pairs(), "args": FAST}
    checks = [
        ({"task": "glue/nothing"}, "'glue/nothing', but the tasks are fidelity, sts, glue/sst2"),
        ({"compact": teacher}, "not compact"),
        ({"task": "fidelity"}, "`against` is missing"),
        ({"tokenizer": None}, "`tokenizer` is missing"),
        ({"data": None}, "`data` is missing"),
        (
            {"data": [{"a": 1, "label": 0}]},
            "no column 'sentence1', 'sentence2', but the task needs .*, label; its columns are a, label",
        ),
        ({"data": pairs(2, label=2)}, "label 2 in row 0, but rte has the labels 0 to 1"),
        ({"train": pairs(2, label="x")}, "label 'x' in row 0, but it must be entailment, not_entailment or its number"),
        ({"data": []}, "has no rows"),
        ({"seeds": ()}, "`seeds` is empty"),
        ({"task": "sts", "data": [{"sentence1": "w5"}]}, "no column 'sentence2', 'score'"),
        ({"task": "squad"}, "needs id, context, question, answers; its columns are sentence1, sentence2, label"),
    ]
    for changes, message in checks:
        options = {"compact": compact, **good, **changes}
        with pytest.raises(hce.CompactConfigError, match=message):
            hce.evaluate(options.pop("compact"), **options)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    teacher, compact = compress_tiny("bert", CASE)
    for name, model in (("teacher", teacher), ("compact", compact)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60)))
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in pairs()))
    return tmp_path


def test_the_verbs(folders: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--teacher", folders / "teacher", "--texts", folders / "texts.txt", "--output", folders / "out"]
    words += ["--steps", 2, "--batch-size", 4, "--max-length", 16, "--loss", "states=2", "--set", "use_cpu=true"]
    assert main(["calibrate", str(folders / "compact"), *map(str, words), "--json"]) == 0
    noted = json.loads(capsys.readouterr().out)
    assert noted["steps"] == 2 and noted["losses"] == {"states": 2.0}
    words = ["--against", folders / "teacher", "--task", "perplexity", "--data", folders / "texts.txt"]
    assert main(["evaluate", str(folders / "out"), *map(str, words), "--json"]) == 0
    from_codes = json.loads(capsys.readouterr().out)["metrics"]["perplexity"]["compact"]["mean"]
    assert main(["evaluate", str(folders / "out"), *map(str, words), "--json", "--runtime", "int8"]) == 0
    from_rows = json.loads(capsys.readouterr().out)["metrics"]["perplexity"]["compact"]["mean"]
    assert from_rows != from_codes and from_rows == pytest.approx(from_codes, rel=0.1)
    words = ["--task", "glue/mrpc", "--data", folders / "test.jsonl", "--train", folders / "test.jsonl", "--seeds", 2]
    words += ["--set", "max_steps=1", "--set", "use_cpu=true"]
    assert main(["evaluate", str(folders / "out"), *map(str, words)]) == 0
    assert "trained with 2 seed(s)" in capsys.readouterr().out
    assert main(["evaluate", str(folders / "out"), "--task", "nothing"]) == 2
    assert main(["evaluate", str(folders / "out"), *map(str, words), "--runtime", "int8"]) == 2
    assert "`--runtime` is of no use beside `--train`" in capsys.readouterr().err
    assert main(["calibrate", str(folders / "compact"), "--texts", "no.txt", "--output", str(folders / "new")]) == 2
    assert "hf-compact calibrate: " in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "bart"])
def test_any_head_has_sentence_vectors(architecture: str) -> None:
    teacher, compact = compress_tiny(architecture, CASE)
    tokenizer = tiny_tokenizer()
    result = hce.evaluate(compact, task="sts", tokenizer=tokenizer, data=pairs(), against=teacher)
    base = teacher.get_encoder() if teacher.config.is_encoder_decoder else teacher.base_model
    rows = pairs()
    encoded = tokenizer([row["sentence1"] for row in rows], padding=True, return_tensors="pt")
    states = base(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1)
    wanted = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(
        sentence_vectors(teacher, tokenizer, [row["sentence1"] for row in rows]), wanted.detach(), atol=1e-5, rtol=1e-4
    )
    assert -1 <= result.metrics["spearmanr"].compact[0] <= 1
    cut = sentence_vectors(teacher, tokenizer, [row["sentence1"] for row in rows], max_length=4)
    assert not torch.allclose(cut, wanted, atol=1e-3)


def test_an_encoder_decoder_has_no_perplexity_on_running_text() -> None:
    _, compact = compress_tiny("bart", CASE)
    with pytest.raises(hce.CompactConfigError, match="predicts from another text than it reads"):
        hce.evaluate(compact, task="perplexity", tokenizer=tiny_tokenizer(), data=tiny_texts(60))


def test_labels_are_found_by_their_names() -> None:
    """Models of the Hub have orders of their own."""
    model = tiny_model("bert", "BertForSequenceClassification", num_labels=3)
    compact = hce.compress(model, "scalar")
    tokenizer = tiny_tokenizer()
    texts = list(zip(tiny_texts(9), tiny_texts(9, seed=1), strict=True))
    said = [int(compact(**tokenizer(*pair, return_tensors="pt")).logits.argmax()) for pair in texts]
    names = ("contradiction", "ENTAILMENT", "neutral")
    rows = [
        {"premise": one, "hypothesis": other, "label": find_task("xnli").label_names.index(names[place].lower())}
        for (one, other), place in zip(texts, said, strict=True)
    ]
    compact.config.id2label = dict(enumerate(names))
    result = hce.evaluate(compact, task="xnli", tokenizer=tokenizer, data=rows, args={"use_cpu": True})
    assert result.metrics["accuracy"].compact == (1.0,)


def test_a_head_that_is_there_is_not_the_one_that_is_trained() -> None:
    model = tiny_model("bert", "BertForSequenceClassification")
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([50.0, -50.0]))
    compact = hce.compress(model, "scalar")
    rows = [row | {"label": 1} for row in pairs(8)]
    options = {"tokenizer": tiny_tokenizer(), "train": rows, "args": FAST | {"learning_rate": 1e-12}}
    found = hce.evaluate(compact, task="glue/rte", data=rows, seeds=range(6), **options).metrics["accuracy"].compact
    assert max(found) > 0, "a head that always says 0 was kept"
    xnli = [{"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": 2} for row in rows]
    other = hce.evaluate(compact, task="xnli", data=xnli, **options | {"train": xnli}, against=model)
    assert set(other.metrics) == {"accuracy"}
    scores = hce.evaluate(compact, task="glue/stsb", data=pairs(8), **options | {"train": pairs(8)})
    assert "spearmanr" in scores.metrics


def test_own_data_is_not_called_a_benchmark(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", CASE, head="BertModel")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    result = hce.evaluate(compact, task="sts", tokenizer=tiny_tokenizer(), data=str(tmp_path / "mine.jsonl"))
    assert result.card_fields()["dataset_id"] is None and result.card_fields()["dataset_name"] == "sts"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sts", "data": [*pairs(3), pairs(1)[0] | {"score": ""}]}, "the score '' in row 3"),
        ({"task": "sts", "data": [*pairs(3), {"sentence1": "w5", "score": 1}]}, "no column 'sentence2' in row 3"),
        ({"task": "glue/rte", "data": pairs(3), "train": pairs(3), "args": {"no_such": 1}}, "`args` is not accepted"),
    ],
)
def test_bad_rows_and_settings(options: dict[str, Any], message: str) -> None:
    _, compact = compress_tiny("bert", CASE, head="BertModel")
    with pytest.raises(hce.CompactConfigError, match=message):
        hce.evaluate(compact, tokenizer=tiny_tokenizer(), **options)


@pytest.mark.parametrize("task", ["sts", "glue/rte"])
def test_a_tokenizer_that_cannot_pad(task: str) -> None:
    _, compact = compress_tiny("gpt2", CASE)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    options = {"train": pairs(8), "args": FAST} if task != "sts" else {}
    with pytest.raises(hce.CompactConfigError, match="`tokenizer` has no padding token"):
        hce.evaluate(compact, task=task, tokenizer=tokenizer, data=pairs(8), **options)
    tokenizer.pad_token = "[PAD]"
    compact.config.pad_token_id = None
    assert hce.evaluate(compact, task=task, tokenizer=tokenizer, data=pairs(8), **options).metrics


def test_tasks_read_every_kind_of_file_and_find_their_text(tmp_path: Path) -> None:
    rows = [{"sentence": text, "label": place} for place, text in enumerate(tiny_texts(60))]
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "test.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"{row['sentence']}\t{row['label']}\n" for row in rows)
    )
    assert read_rows(tmp_path / "test.jsonl.gz") == read_rows(tmp_path, "test") == rows
    compact = hce.compress(tiny_model("bert"), "scalar")
    found = [
        hce.evaluate(compact, task="perplexity", tokenizer=tiny_tokenizer(), data=data)
        for data in (tmp_path, rows, tiny_texts(60))
    ]
    assert found[0].metrics == found[1].metrics == found[2].metrics
