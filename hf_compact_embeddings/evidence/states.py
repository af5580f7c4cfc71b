"""What a model makes of texts: its encoder, and each token's mean contextual state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .texts import Text, no_tokens, text_batches

_TEXTS_PER_BATCH = 64
_MAX_LENGTH = 256


@torch.no_grad()
def contextual_states(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Tensor:
    """Return each token's mean last hidden state over texts (V, H), float32.

    Tokens that do not occur get the state that a linear map from their table row predicts, so that all
    rows can be compared with each other.
    """
    table = model.get_input_embeddings().weight.float()
    training = model.training
    model.eval()
    try:
        sums, counts = _summed_states(texts, tokenizer, model, len(table))
    finally:
        model.train(training)
    seen = counts > 0
    means = sums / counts.clamp(min=1).unsqueeze(-1)
    rows = torch.cat([table.cpu(), torch.ones(len(table), 1)], dim=1)
    # A ridge keeps the map defined where fewer tokens were seen than the table is wide.
    gram = rows[seen].T @ rows[seen]
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    predicted = rows @ torch.linalg.solve(gram + ridge, rows[seen].T @ means[seen])
    return torch.where(seen.unsqueeze(-1), means, predicted)


def _summed_states(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of each token's last hidden states (V, H), and how many there were (V,)."""
    encoder = base_encoder(model)
    sums, counts = None, torch.zeros(rows)
    for batch in text_batches(texts, "Reading contexts", _TEXTS_PER_BATCH):
        encoded = tokenizer(batch, truncation=True, max_length=_MAX_LENGTH, padding=True, return_tensors="pt")
        states = encoder(
            input_ids=encoded["input_ids"].to(model.device),
            attention_mask=encoded["attention_mask"].to(model.device),
        ).last_hidden_state
        kept = encoded["attention_mask"].bool()
        ids, states = encoded["input_ids"][kept], states.cpu().float()[kept]
        sums = torch.zeros(rows, states.shape[-1]) if sums is None else sums
        sums.index_add_(0, ids, states)
        counts.index_add_(0, ids, torch.ones(len(ids)))
    if sums is None:
        raise no_tokens()
    return sums, counts


def base_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that turns embedded tokens into hidden states."""
    base = getattr(model, model.base_model_prefix, model)
    return base.get_encoder() if model.config.is_encoder_decoder else base
