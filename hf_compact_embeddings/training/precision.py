"""What a checkpoint's number format means for training."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedModel

ModelType = TypeVar("ModelType", bound=PreTrainedModel)


def trainable(model: ModelType) -> ModelType:
    """Return a model that was loaded in float16 in float32: in float16 Adam's steps end in NaN.

    Its squared gradients are below what float16 holds, and Trainer's `fp16` wants float32 weights too. bfloat16 has
    float32's range, and stays.
    """
    return model.float() if model.dtype == torch.float16 else model
