"""blend(): a model between a fit and what calibration made of it."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from ..modeling.errors import CompactConfigError, config_error


@torch.no_grad()
def blend(start: PreTrainedModel, end: PreTrainedModel, share: float) -> PreTrainedModel:
    """Return a copy of `start` whose values went that share of the way to those of `end` (Wortsman et al., 2022).

    Calibration on text unlike what the model will read makes it better on the former and may make it worse on the
    latter. Half way there is often better on both; held-out data of the own task says where to stop.

    Args:
        start: a compact model, as it was before training.
        end: the same model after training, with the same codes.
        share: from 0 (start) to 1 (end).
    """
    if not 0.0 <= share <= 1.0:
        raise config_error("share", share, "it is from 0 to 1")
    values, others = dict(start.named_parameters()), dict(end.named_parameters())
    if values.keys() != others.keys() or any(value.shape != others[name].shape for name, value in values.items()):
        raise CompactConfigError("`start` and `end` are not the same model: their parameters differ in name or shape.")
    codes, other_codes = dict(start.named_buffers()), dict(end.named_buffers())
    if codes.keys() != other_codes.keys() or any(
        not torch.equal(codes[name], other_codes[name].to(codes[name].device)) for name in codes
    ):
        raise CompactConfigError("`start` and `end` have different codes, between which there is nothing.")
    result = copy.deepcopy(start)
    for name, value in result.named_parameters():
        value.lerp_(others[name].to(value), share)
    result.config = copy.deepcopy(end.config)
    if noted := (result.config.compact_source or {}).get("calibration"):
        # Cards say how far the values went.
        noted["share"] = share * noted.get("share", 1.0)
    return result
