"""Pipelines take a compact checkpoint and answer as the decompressed model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import pipeline

import hf_compact_embeddings as hce

from ..cases import Case, compress_tiny, for_each_method
from ..tools import tiny_tokenizer

TEXT = "w17 w42 w8"
# Task: the architecture, the head, the text, and options of the call.
TASKS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "fill-mask": ("bert", "BertForMaskedLM", "w17 [MASK] w8", {}),
    "text-classification": ("bert", "BertForSequenceClassification", TEXT, {"top_k": None}),
    "token-classification": ("bert", "BertForTokenClassification", TEXT, {}),
    "feature-extraction": ("bert", "BertModel", TEXT, {}),
    "text-generation": ("llama", "LlamaForCausalLM", TEXT, {"max_new_tokens": 5, "do_sample": False}),
}


def assert_same_answers(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_same_answers(ours[key], value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for left, right in zip(ours, theirs, strict=True):
            assert_same_answers(left, right)
    elif isinstance(theirs, float | np.floating):
        assert ours == pytest.approx(theirs, abs=1e-5)
    else:
        assert ours == theirs


@for_each_method("project", "dense")
@pytest.mark.parametrize("task", TASKS)
def test_pipelines(task: str, case: Case, tmp_path: Path) -> None:
    architecture, head, text, options = TASKS[task]
    dense, compact = compress_tiny(architecture, case, head=head)
    tokenizer = tiny_tokenizer()
    if task == "text-generation":
        compact.generation_config.pad_token_id = 0
    compact.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = pipeline(task, model=str(tmp_path))
    assert type(ours.model) is getattr(hce, f"Compact{type(dense).__name__}")
    native = hce.decompress(compact)
    theirs = pipeline(task, model=native, tokenizer=tokenizer)
    answer = ours(text, **options)
    assert_same_answers(answer, theirs(text, **options))
    assert answer


@for_each_method("project")
def test_the_pipeline_picks_the_task_of_a_compact_checkpoint(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    mapping = transformers.MODEL_FOR_MASKED_LM_MAPPING
    assert mapping[type(compact.config)] is type(compact)
    answers = pipeline("fill-mask", model=str(tmp_path), top_k=3)("w17 [MASK] w8")
    with torch.no_grad():
        ids = tiny_tokenizer()("w17 [MASK] w8", return_tensors="pt")
        best = compact(**ids).logits[0, 2].topk(3).indices
    assert [answer["token"] for answer in answers] == best.tolist()
