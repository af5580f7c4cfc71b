"""Task rows and metrics: against scikit-learn, SciPy and SQuAD's own rules; what training does to number formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import AutoModelForMaskedLM, DataCollatorWithPadding

import hf_compact_embeddings as hce
from hf_compact_embeddings.finetuning.classification import GLUE, find_task, task_of_rows
from hf_compact_embeddings.finetuning.data import read_rows
from hf_compact_embeddings.finetuning.metrics import compute, interval_95, squad_metrics
from hf_compact_embeddings.finetuning.question_answering import QuestionAnsweringTask
from hf_compact_embeddings.scripts import ModelArguments

from ..cases import compress_tiny, first_cases
from ..evaluation.test_tasks import questions
from ..tiny_models import tiny_model
from ..tools import tiny_tokenizer

CASE = first_cases("project", "dense")[0]


def test_scripts_train_a_float16_model_in_float32(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", CASE)
    compact.half().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = ModelArguments(model_name_or_path=str(tmp_path)).load(AutoModelForMaskedLM)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).dtype == torch.float16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_squads_rules() -> None:
    references = {"a": ["the Eiffel Tower", "Paris"], "b": ["in 1889"], "c": ["yes"]}
    found = squad_metrics({"a": "Eiffel tower!", "b": "1889", "c": "no"}, references)
    assert found["exact_match"] == pytest.approx(100 / 3)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


def test_metrics_have_the_keys_of_evaluate() -> None:
    generator = np.random.default_rng(0)
    truth, guess = generator.integers(0, 2, 50), generator.integers(0, 2, 50)
    found = compute(("accuracy", "f1", "matthews_correlation"), guess.tolist(), truth.tolist())
    assert found["f1"] == f1_score(truth, guess) and found["matthews_correlation"] == matthews_corrcoef(truth, guess)
    assert found["accuracy"] == (truth == guess).mean()
    scores = generator.random(50)
    assert compute(("spearmanr",), scores, truth)["spearmanr"] == pytest.approx(spearmanr(scores, truth).statistic)
    low, high = interval_95([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2.0) and high - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-3)
    assert interval_95([1.0]) is None
    assert set(GLUE) == {"sst2", "cola", "mrpc", "rte", "wnli", "qnli", "qqp", "mnli", "stsb"}
    assert find_task("glue/stsb").measure(np.array([[1.0], [2.0]]), np.array([0.5, 3.0]))["pearson"] == 1.0


def test_a_missing_library_of_metrics_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, metric in (("scipy.stats", "SciPy", "spearmanr"), ("sklearn.metrics", "scikit-learn", "f1")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(hce.CompactEmbeddingsError, match=rf"need {name}: .*hf_compact_embeddings\[train\]"):
            compute((metric,), [0, 1], [0, 1])


def test_tasks_of_ones_own_texts() -> None:
    named = [{"sentence1": "w5", "sentence2": "w6", "label": name} for name in ("yes", "no", "yes")]
    task = task_of_rows(named)
    assert task.columns == ("sentence1", "sentence2") and task.label_names == ("no", "yes") and task.num_labels == 2
    assert [row["labels"] for row in task.encode(named, tiny_tokenizer())] == [1, 0, 1]
    with pytest.raises(
        hce.CompactConfigError, match="the label 'maybe' in row 0, but it must be no, yes or its number"
    ):
        task.encode([named[0] | {"label": "maybe"}], tiny_tokenizer())
    numbered = task_of_rows([{"text": "w5", "label": label} for label in ("0", "3")])
    assert numbered.columns == ("text",) and numbered.num_labels == 4 and numbered.label_name(3) == "3"
    with pytest.raises(hce.CompactConfigError, match="for scores take the task stsb"):
        task_of_rows([{"text": "w5", "label": 0.5}])
    with pytest.raises(hce.CompactConfigError, match="no column 'text'.*its columns are words, label"):
        task_of_rows([{"words": "w5", "label": 0}])
    model = tiny_model("bert", head="BertForSequenceClassification", num_labels=2)
    task.name_labels(model.config)
    assert task_of_rows([{"text": "w5"}], model.config).label_names == ("no", "yes")
    # A model that was trained elsewhere may have them the other way round.
    model.config.id2label = {0: "yes", 1: "no"}
    assert task.in_order_of_labels((np.array([[0.0, 1.0]]), None), model.config).tolist() == [[1.0, 0.0]]
    assert find_task("glue/mnli").split_on_hub("test") == "test_matched"
    assert find_task("glue/mnli").split_on_hub("train") == "train"


def test_rows_from_files(tmp_path: Path) -> None:
    rows = [{"a": "x, y", "label": "1"}, {"a": "z", "label": "0"}]
    (tmp_path / "test.csv").write_text('a,label\n"x, y",1\nz,0\n')
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split in ("test", "train", "validation"):
        assert read_rows(tmp_path, split) == rows
    assert read_rows({"dev": rows}, "dev") == read_rows(tmp_path / "train.json") == rows
    with pytest.raises(hce.CompactConfigError, match="no file for the split 'dev'; it holds test.csv"):
        read_rows(tmp_path, "dev")
    with pytest.raises(hce.CompactConfigError, match="'nothing.csv' is no file"):
        read_rows("nothing.csv")
    # Separators that Python takes for ends of lines, and JSON does not.
    strange = [{"sentence1": "w5\u2028w6", "label": 0}, {"sentence1": "w7\x85", "label": 1}]
    (tmp_path / "strange.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in strange))
    assert read_rows(tmp_path / "strange.jsonl") == strange
    (tmp_path / "numbers.jsonl").write_text('{"text": "w5"}\n3\n')
    for source in (tmp_path / "numbers.jsonl", [{"text": "w5"}, 3]):
        with pytest.raises(hce.CompactConfigError, match="has a int as row 1, but a row names its columns"):
            read_rows(source)
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(hce.CompactConfigError, match=r"bad.jsonl' cannot be read"):
        read_rows(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_are_where_the_padded_row_has_them(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    rows = questions()
    rows[0]["context"] += " w5 w6 w7"
    task = QuestionAnsweringTask(tokenizer, 60, 8)
    windows = task.windows(rows, with_answers=True)
    batch = DataCollatorWithPadding(task.tokenizer)(windows)
    for row, ids, start in zip(rows, batch["input_ids"], batch["start_positions"], strict=True):
        assert tokenizer.convert_ids_to_tokens(int(ids[start])) == row["answers"]["text"][0].split()[0]
    assert tokenizer.padding_side == side
