"""The judge reads as many held-out tokens as it needs, and asks the teacher once."""

from __future__ import annotations

import dataclasses

import pytest

from hf_compact_embeddings.training import judge as judging
from hf_compact_embeddings.training.judge import Judge
from hf_compact_embeddings.training.recipes import recipe_for

from ..cases import compress_tiny, first_cases
from ..tools import tiny_texts, tiny_tokenizer

CASE = first_cases("project", "dense")[0]


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_the_teacher_is_asked_once_for_all_models(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, compact = compress_tiny(architecture, CASE)
    recipe = dataclasses.replace(recipe_for(compact), max_length=16, batch=4)
    judge = Judge(compact, teacher, tiny_tokenizer(), recipe, tiny_texts(40), 0)
    first = judge(compact)
    monkeypatch.setattr(teacher, "forward", lambda *_, **__: pytest.fail("it is asked again"))
    assert judge(compact) == first > 0
    with_other_values, _ = compress_tiny(architecture, CASE)
    assert judge(with_other_values) != first


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_it_stops_at_enough_tokens(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_PREDICTED_TOKENS", 40)
    teacher, compact = compress_tiny(architecture, CASE)
    recipe = dataclasses.replace(recipe_for(compact), max_length=16, batch=4)
    judge = Judge(compact, teacher, tiny_tokenizer(), recipe, tiny_texts(80), 0)
    last = judge.batches[-1]["targets"]
    predicted = sum(len(batch["targets"]) for batch in judge.batches)
    assert 40 <= predicted < 40 + 16 and len(last)
