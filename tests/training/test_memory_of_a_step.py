"""A training step of a compact model needs no gradient and no optimiser state of the size of the dense table."""

from __future__ import annotations

import pytest
import torch
import transformers

import hf_compact_embeddings as hce
from hf_compact_embeddings.kernels import lazy_scores, score_tiles
from hf_compact_embeddings.training.losses import run, target_of, total_loss

from ..cases import Case, for_each_method
from ..tools import LargestTensor

ROWS, WIDTH = 30_000, 64


def model_with(options: dict | None) -> transformers.PreTrainedModel:
    shape = {
        "vocab_size": ROWS,
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    if options is None:
        return transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
    return hce.CompactBertForSequenceClassification(hce.CompactBertConfig(**shape, compact_embeddings=options))


def bytes_of_a_step(model: transformers.PreTrainedModel) -> tuple[int, int]:
    """Return the bytes of gradients and optimiser state, and of the largest tensor that the step makes."""
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(5, ROWS, (4, 16), generator=torch.Generator().manual_seed(0))
    with LargestTensor() as step:
        model(input_ids=ids, labels=torch.zeros(4, dtype=torch.int64)).loss.backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    optimizer.step()
    state = sum(
        value.nbytes for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value)
    )
    return gradients + state, step.bytes


@pytest.fixture(scope="module")
def dense() -> tuple[int, int]:
    return bytes_of_a_step(model_with(None))


@for_each_method("project")
def test_a_step_keeps_nothing_of_the_dense_tables_size(case: Case, dense: tuple[int, int]) -> None:
    kept, largest = bytes_of_a_step(model_with(case.config(init="random").to_dict()))
    assert dense[0] > 3 * ROWS * WIDTH * 4 and dense[1] >= ROWS * WIDTH * 4, "the measure does not see the dense table"
    assert largest < dense[1] / 2, f"{largest:,} bytes against {dense[1]:,}"
    # Some methods keep most of their floats for each row (a factor, a scale); none keeps the table.
    assert kept < dense[0] / 2, f"{kept:,} bytes against {dense[0]:,}"


@pytest.mark.parametrize("loss", ["logits", "labels"])
@for_each_method("project")
def test_a_step_of_calibration_keeps_no_scores_of_all_tokens(
    case: Case, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the student's nor the teacher's, nor their gradients, however many tokens are predicted."""
    monkeypatch.setattr(score_tiles, "_SCORES_PER_TILE", 1 << 18)
    monkeypatch.setattr(score_tiles, "_VALUES_PER_TILE", 1 << 18)
    monkeypatch.setattr(score_tiles, "_SCORES_AT_ONCE", 1 << 19)
    shape = {
        "vocab_size": ROWS,
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "tie_word_embeddings": True,
    }
    teacher = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    options = case.config(init="random").to_dict()
    student = hce.CompactLlamaForCausalLM(hce.CompactLlamaConfig(**shape, compact_embeddings=options))
    ids = torch.randint(5, ROWS, (4, 32), generator=torch.Generator().manual_seed(0))
    batch, positions = (
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        torch.ones_like(ids, dtype=torch.bool),
    )
    largest = {}
    for whole_scores in (True, False):
        with torch.no_grad():
            said = run(teacher, teacher, batch, positions, whole_scores)
        target = target_of(said, batch["attention_mask"], {loss: 1.0})
        with LargestTensor() as step:
            answer = run(student, student, batch, positions, whole_scores)
            total_loss(answer, target, batch["attention_mask"], ids.flatten(), {loss: 1.0})[0].backward()
        largest[whole_scores] = step.bytes
    scores, table = ids.numel() * ROWS * 4, ROWS * WIDTH * 4
    assert largest[True] >= scores, "the measure does not see them"
    # Some methods keep most of their floats for each row, whose gradients are as large; none is as large as the table.
    assert largest[False] < min(table, scores), f"{largest[False]:,} bytes against {table:,} and {scores:,}"


@pytest.mark.parametrize("tokens_at_once", [1 << 19, 1])
@for_each_method("project")
def test_a_step_with_labels_holds_no_scores_of_all_tokens(
    case: Case, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_tiles, "_SCORES_PER_TILE", 1 << 18)
    monkeypatch.setattr(score_tiles, "_VALUES_PER_TILE", 1 << 18)
    monkeypatch.setattr(score_tiles, "_SCORES_AT_ONCE", tokens_at_once)
    shape = {"vocab_size": ROWS, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = case.config(init="random").to_dict()
    config = hce.CompactLlamaConfig(**shape, intermediate_size=64, tie_word_embeddings=True, compact_embeddings=options)
    model = hce.CompactLlamaForCausalLM(config)
    ids = torch.randint(5, ROWS, (4, 32), generator=torch.Generator().manual_seed(0))
    largest = {}
    for least in (1 << 60, 1):
        monkeypatch.setattr(lazy_scores, "_LEAST_SCORES", least)
        with LargestTensor() as step:
            model(input_ids=ids, labels=ids).loss.backward()
        largest[least] = step.bytes
    scores, table = ids.numel() * ROWS * 4, ROWS * WIDTH * 4
    assert largest[1 << 60] >= scores, "the measure does not see them"
    assert largest[1] < min(table, scores), f"{largest[1]:,} bytes against {table:,} and {scores:,}"
