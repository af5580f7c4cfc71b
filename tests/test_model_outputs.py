"""Which heads predict which tokens, of compact and dense models; means of hidden states."""

from __future__ import annotations

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.model_outputs import is_causal_lm, is_masked_lm, mean_pooled, scored_at

from .tiny_models import tiny_inputs, tiny_model


@pytest.mark.parametrize(
    ("architecture", "head", "kind"),
    [
        ("bert", None, "masked"),
        ("bert", "BertModel", None),
        ("bert", "BertForSequenceClassification", None),
        ("bert", "BertForPreTraining", None),
        ("gpt2", None, "causal"),
        # Their decoders predict from another text than they read, though BART is in Transformers' table of masked ones.
        ("bart", None, None),
        ("t5", None, None),
    ],
)
def test_what_a_head_predicts(architecture: str, head: str | None, kind: str | None) -> None:
    dense = tiny_model(architecture) if head is None else tiny_model(architecture, head)
    for model in (dense, hce.compress(dense, "scalar")):
        found = "masked" if is_masked_lm(model) else "causal" if is_causal_lm(model) else None
        assert found == kind


def test_means_leave_padding_out() -> None:
    states = torch.arange(24.0).view(2, 3, 4).half()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    found = mean_pooled(states, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([states[0, :2].float().mean(0), torch.zeros(4)]))


def test_scores_at_some_positions_only() -> None:
    model = tiny_model("bert").eval()
    inputs = tiny_inputs(model)
    chosen = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    chosen[0, 1] = chosen[1, 2] = True
    with torch.no_grad():
        whole = model(**inputs).logits
        with scored_at(model, chosen):
            some = model(**inputs).logits
        with scored_at(model, None):
            one = model(**inputs).logits
        again = model(**inputs).logits
    torch.testing.assert_close(some, whole[chosen])
    assert one.shape[:2] == (1, 1) and torch.equal(again, whole)
