"""Rows that a fit lets take the probability of all others are found, and kept exactly within the same budget."""

from __future__ import annotations

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings import compression
from hf_compact_embeddings.evidence.overrated import overrated_rows
from hf_compact_embeddings.evidence.sensitivity import find_sensitivity
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.structure import CompactEmbedding
from hf_compact_embeddings.modeling.structure_scalar import ScalarConfig

from ..tiny_models import VOCABULARY, tiny_model
from ..tools import tiny_texts, tiny_tokenizer

WIDTH = 24


def spoilt(rows: torch.Tensor, ids: list[int], by: torch.Tensor) -> CompactEmbedding:
    """Return a close fit in which some rows have got an error."""
    structure = fit_structure(ScalarConfig(bits=8), FitSource(table=rows))
    structure.set_private_rows(torch.tensor(ids), rows[ids] + by)
    return structure


def test_rows_that_take_all_are_found_also_behind_others() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, states = (torch.randn(count, WIDTH, generator=generator) for count in (400, 100))
    states[:, 0] += 3.0
    push = torch.zeros(WIDTH)
    push[0] = 4.0
    # The last hides the second; one that loses its chances harms little.
    errors = torch.stack([-push, push, 0.01 * push, 10 * push])
    assert overrated_rows(spoilt(rows, [3, 70, 150, 399], errors), rows, states, 9).tolist() == [70, 399]
    assert overrated_rows(spoilt(rows, [3, 70, 150, 399], errors), rows, states, 1).tolist() == [399]
    assert overrated_rows(spoilt(rows, [5], 0 * push), rows, states, 9).numel() == 0


def test_states_give_the_logits_of_the_model() -> None:
    model, tokenizer, texts = tiny_model("gpt2"), tiny_tokenizer(), tiny_texts(8)
    states = find_sensitivity(texts, tokenizer, model).states
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[encoded["attention_mask"].bool()]
    found = states @ model.get_input_embeddings().weight.detach().T
    assert len(found) <= len(logits)
    nearest = torch.cdist(found, logits, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(nearest.max()) < 1e-4


@pytest.mark.parametrize("budget", [{"ratio": 8}, {"bits_per_weight": 4.0}])
def test_compress_keeps_them_exactly_within_the_budget(budget: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny_model("llama"), {"tokenizer": tiny_tokenizer(), "texts": tiny_texts(100)}
    rows = model.get_input_embeddings().weight.detach()
    calls: list[CompactEmbedding] = []

    def two_rows(structure: CompactEmbedding, *_: object) -> torch.Tensor:
        calls.append(structure)
        return torch.tensor([77, 78]) if len(calls) == 1 else torch.empty(0, dtype=torch.int64)

    monkeypatch.setattr("hf_compact_embeddings.evidence.gathering.overrated_rows", two_rows)
    monkeypatch.setattr(compression, "_SHARE_OF_OVERRATED", 0.25)
    compact = hce.compress(model, "rotated", **budget, **given).compact_embedding
    assert len(calls) == 2 and {77, 78} <= set(compact.private_id_list().tolist())
    torch.testing.assert_close(compact.dense()[[77, 78]], rows[[77, 78]], atol=1e-4, rtol=1e-3)
    assert compact.nbytes <= compact.options.budget(VOCABULARY, WIDTH)
    calls.clear()
    hce.compress(model, "rotated", metric="plain", **budget, **given)
    hce.compress(model, "scalar", bits=4, **given)
    assert not calls, "only what a metric of scores has shown, and within a budget"
    monkeypatch.setattr(compression, "_SHARE_OF_OVERRATED", 0.02)
    hce.compress(model, "rotated", **budget, **given)
    assert not calls, "a small part of the budget: here not even one row"
