"""What an error in an embedding row costs: how far it moves the model's output over texts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .modeling.errors import CompactConfigError
from .token_statistics import base_encoder, text_batches

# A few hundred texts fix a matrix of this size well enough: it is smoothed before it is used.
_TEXTS = 512
_TEXTS_PER_BATCH = 16
_MAX_LENGTH = 64
# Random directions of the output for each text.
_DIRECTIONS = 3


def sensitivity_metric(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, seed: int = 0
) -> Tensor:
    """Return the square root (D, D) of the mean outer product of the output's gradients for embedded tokens, float64.

    The output is the direction of the mean last hidden state. Its gradients along random directions stand for the
    whole Jacobian, so errors along the large axes of the result are those that the output shows. Of the product itself
    a fit would leave out too much: errors are not as small as gradients assume.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder, table = base_encoder(model), model.get_input_embeddings()
    width = table.weight.shape[1]
    total, tokens, read = torch.zeros(width, width, dtype=torch.float64), 0, 0
    training = model.training
    model.eval()
    try:
        for batch in text_batches(texts, "Reading sensitivities", _TEXTS_PER_BATCH):
            encoded = tokenizer(batch, truncation=True, max_length=_MAX_LENGTH, padding=True, return_tensors="pt")
            mask = encoded["attention_mask"].to(model.device)
            rows = table(encoded["input_ids"].to(model.device)).detach().requires_grad_(True)
            states = encoder(inputs_embeds=rows, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            output = normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
            for left in reversed(range(_DIRECTIONS)):
                direction = torch.randn(output.shape, generator=generator).to(output)
                (gradient,) = torch.autograd.grad((output * direction).sum(), rows, retain_graph=left > 0)
                kept = gradient[mask.bool()].double().cpu()
                total += kept.T @ kept
            tokens += int(mask.sum())
            read += len(batch)
            if read >= _TEXTS:
                break
    finally:
        model.train(training)
    if not tokens:
        raise CompactConfigError("`texts` gave no tokens: it is empty, or holds empty strings only.")
    variances, axes = torch.linalg.eigh(total / tokens)
    return (axes * variances.clamp(min=0.0).sqrt()) @ axes.T
