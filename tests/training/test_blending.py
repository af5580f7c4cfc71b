"""Going part of the way from one model to another."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.training import blend

from ..tiny_models import tiny_model


def compact(seed: int) -> hce.CompactBertModel:
    torch.manual_seed(0)
    model = hce.compress(tiny_model(), "subspace", num_subspaces=2, codebook_size=8)
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model


def test_values_are_between(tmp_path) -> None:
    start, end = compact(1), compact(2)
    end.config.compact_source["calibration"] = {"steps": 7}
    before = {name: value.clone() for name, value in start.named_parameters()}
    quarter = blend(start, end, 0.25)
    after = dict(end.named_parameters())
    for name, value in quarter.named_parameters():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name])
    assert all(torch.equal(value, before[name]) for name, value in start.named_parameters()), "start is as it was"
    assert all(torch.equal(*pair) for pair in zip(blend(start, end, 0.0).parameters(), start.parameters(), strict=True))
    assert quarter.config.compact_source["calibration"] == {"steps": 7, "share": 0.25}
    assert end.config.compact_source["calibration"] == {"steps": 7}
    assert blend(start, quarter, 0.5).config.compact_source["calibration"]["share"] == 0.125
    quarter.save_pretrained(tmp_path)
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is type(start)


def test_what_has_nothing_between() -> None:
    start, end = compact(1), compact(2)
    with pytest.raises(hce.CompactConfigError, match="`share` is 1.5"):
        blend(start, end, 1.5)
    end.compact_embedding.codes.add_(1)
    with pytest.raises(hce.CompactConfigError, match="different codes"):
        blend(start, end, 0.5)
    with pytest.raises(hce.CompactConfigError, match="not the same model"):
        blend(start, hce.compress(tiny_model(), "scalar"), 0.5)
