"""Calibration by several processes ends in all of them alike, and where one process alone would have ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_compact_embeddings.training.trainer import EXACT_TABLE

from ..cases import compress_tiny, first_cases
from ..launching import run, run_together
from ..tools import tiny_texts, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    teacher, compact = compress_tiny("bert", first_cases("project", "dense")[0])
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    compact.save_pretrained(tmp_path / "compact")
    return tmp_path


def calibrated(folder: Path, name: str, batch_size: int, ranks: int) -> list[dict[str, Any]]:
    """Run the script in processes that train together, and return what each found."""
    words = ["-m", "tests.training.process_script", folder, name, batch_size]
    if ranks > 1:
        run_together(*words, home=folder / "home", ranks=ranks)
    else:
        run(*words, home=folder / "home")
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]


def test_two_processes_end_where_one_does(folder: Path) -> None:
    (folder / "texts.json").write_text(json.dumps(tiny_texts(140)))
    alone = calibrated(folder, "alone", 8, 1)
    both = calibrated(folder, "both", 4, 2)
    assert [result["processes"] for result in alone + both] == [1, 2, 2]
    assert both[0]["digest"] == both[1]["digest"]
    one, two = (load_file(folder / name / "checkpoint-3" / EXACT_TABLE) for name in ("alone", "both"))
    start = load_file(folder / "compact" / "model.safetensors")
    for name, value in one.items():
        # Adam's steps are as large for small gradients, which differ by rounding.
        torch.testing.assert_close(two[name], value, atol=1e-3 * float(value.abs().max()), rtol=1e-2, msg=name)
        assert not any(torch.equal(value, other.float()) for key, other in start.items() if key.endswith(f".{name}"))


def test_two_processes_share_a_stream(folder: Path) -> None:
    """A batch has more rows than positions or the other way round, so that no process may cut it up for the others."""
    (folder / "stream").mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in tiny_texts(140))
    (folder / "stream" / "train.jsonl").write_text(rows)
    both = calibrated(folder, "streamed", 4, 2)
    assert [result["processes"] for result in both] == [2, 2]
    assert both[0]["digest"] == both[1]["digest"]
