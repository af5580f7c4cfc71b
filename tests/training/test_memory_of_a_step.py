"""A training step of a compact model needs no gradient and no optimiser state of the size of the dense table."""

from __future__ import annotations

import pytest
import torch
import transformers

import hf_compact_embeddings as hce

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
