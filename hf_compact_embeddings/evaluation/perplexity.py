"""How a model predicts running text, masked or next tokens: its perplexity, and how far a compact one moves from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..finetuning.data import stream_pieces
from ..finetuning.metrics import interval_95
from ..model_outputs import is_masked_lm, scored_at
from ..modeling.errors import CompactConfigError
from ..progress import step

_PIECE_LENGTH, _PIECE_LENGTH_OF_CAUSAL = 128, 512
_PIECES_PER_BATCH = 32
# Scores that each model gives at a time.
_SCORES = 1 << 27
_PREDICTED_SHARE = 0.15
# Of the predicted tokens, as BERT was trained: most are masked, some replaced by any token, and the rest left.
_MASKED_SHARE, _REPLACED_SHARE = 0.8, 0.1


@dataclasses.dataclass(frozen=True)
class Predictions:
    """How models predict the same tokens of a text.

    Attributes:
        tokens: how many were predicted.
        perplexities: of each model, exp of the mean loss.
        bits_per_byte: of each causal model: its loss on all tokens by the bytes of their text.
        kl: mean divergence of the second model's predictions from the first's, in nats; None for one model.
        kl_interval_95: of its mean over pieces of text; None for fewer than two.
        top1_agreement: how often both think the same token the likeliest.
    """

    tokens: int
    perplexities: tuple[float, ...]
    bits_per_byte: tuple[float, ...] | None
    kl: float | None
    kl_interval_95: tuple[float, float] | None
    top1_agreement: float | None


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    seed: int = 0,
    max_length: int | None = None,
) -> float:
    """Return exp of the mean loss of the tokens that are predicted; see `predictions`."""
    return predictions([model], tokenizer, texts, seed, max_length).perplexities[0]


@torch.no_grad()
def predictions(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    seed: int = 0,
    max_length: int | None = None,
) -> Predictions:
    """Let one model, or the original and a compact one, predict the same tokens of a text.

    A masked model predicts 15 % of the tokens, four fifths of them behind a mask, as `DataCollatorForLanguageModeling`
    prepares them, so that the figure compares with those of masked-LM training.

    Args:
        models: with a masked-LM or a causal head, both of one kind.
        tokenizer: the models' tokenizer. Masked models need its mask token.
        texts: running text, a line each.
        seed: of the choice of masked tokens, so that models are compared on the same ones.
        max_length: of the pieces that the text is cut into, in tokens; by default 128, for causal models 512.
    """
    masked = _require_predicting(models, tokenizer)
    length = max_length or (_PIECE_LENGTH if masked else _PIECE_LENGTH_OF_CAUSAL)
    pieces = torch.tensor(list(stream_pieces(texts, tokenizer, min(length, tokenizer.model_max_length))))
    losses, total_bytes, agreeing = [0.0] * len(models), 0, 0
    # Of each piece: the sum of divergences, and how many tokens are predicted.
    divergences = torch.zeros(len(pieces), 2, dtype=torch.float64)
    training = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        for inputs, positions, targets, numbers in _batches(pieces, tokenizer, masked, models[0], seed):
            scores = [_log_probabilities(model, inputs, positions) for model in models]
            for number, found in enumerate(scores):
                losses[number] -= float(found.gather(1, targets[:, None]).sum())
            divergences[:, 1].index_add_(0, numbers, torch.ones(len(numbers)).double())
            if len(scores) == 2:
                original, compact = scores
                apart = (original.exp() * (original - compact)).sum(1)
                divergences[:, 0].index_add_(0, numbers, apart.double())
                agreeing += int((original.argmax(1) == compact.argmax(1)).sum())
            if not masked:
                texts_of_targets = tokenizer.batch_decode(targets.split(positions.shape[1] - 1))
                total_bytes += sum(len(text.encode()) for text in texts_of_targets)
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)
    tokens = int(divergences[:, 1].sum())
    predicted = divergences[divergences[:, 1] > 0]
    two = len(models) == 2
    return Predictions(
        tokens=tokens,
        perplexities=tuple(math.exp(loss / tokens) for loss in losses),
        bits_per_byte=None if masked else tuple(loss / math.log(2) / max(1, total_bytes) for loss in losses),
        kl=float(divergences[:, 0].sum()) / tokens if two else None,
        kl_interval_95=interval_95((predicted[:, 0] / predicted[:, 1]).tolist()) if two else None,
        top1_agreement=agreeing / tokens if two else None,
    )


def _require_predicting(models: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether models predict behind masks; raise if they do not predict the same way, or no running text."""
    for model in models:
        if model.config.is_encoder_decoder:
            raise CompactConfigError(
                f"A {type(model).__name__} predicts from another text than it reads, so that running text gives it no "
                "perplexity."
            )
        if model.get_output_embeddings() is None:
            raise CompactConfigError(f"A {type(model).__name__} has no output layer, which perplexity needs.")
    masked = is_masked_lm(models[0])
    first, last = models[0].get_output_embeddings(), models[-1].get_output_embeddings()
    if first.weight.shape[0] != last.weight.shape[0] or is_masked_lm(models[-1]) != masked:
        kinds = " and ".join(f"{type(one).__name__} ({one.config.vocab_size:,} tokens)" for one in models)
        raise CompactConfigError(f"The two models do not predict the same tokens in the same way: {kinds}.")
    if masked and tokenizer.mask_token_id is None:
        raise CompactConfigError("`tokenizer` has no mask token, which masked-LM perplexity needs.")
    return masked


def _batches(
    pieces: Tensor, tokenizer: PreTrainedTokenizerBase, masked: bool, model: PreTrainedModel, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield inputs and the positions that are predicted (B, T), and of these (n,) the targets and pieces' numbers."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(tokenizer.all_special_ids)
    predicted = pieces.shape[1] * (_PREDICTED_SHARE if masked else 1.0) * model.get_output_embeddings().weight.shape[0]
    size = max(1, min(_PIECES_PER_BATCH, int(_SCORES / predicted)))
    with step("Predicting", len(pieces)) as progress:
        # What is masked does not depend on how many pieces go together.
        for start in range(0, len(pieces), _PIECES_PER_BATCH):
            large = pieces[start : start + _PIECES_PER_BATCH]
            if masked:
                chosen = torch.rand(large.shape, generator=generator) < _PREDICTED_SHARE
                chosen &= ~torch.isin(large, special)
                inputs, targets = _corrupted(large, chosen, tokenizer, generator), large
            else:
                chosen = torch.ones(large.shape, dtype=torch.bool)
                chosen[:, -1] = False
                inputs, targets = large, large.roll(-1, dims=1)
            for number in range(0, len(large), size):
                part = slice(number, number + size)
                positions = chosen[part]
                numbers = positions.nonzero()[:, 0] + start + number
                if len(numbers):
                    yield inputs[part], positions, targets[part][positions], numbers
                progress.update(len(positions))


def _log_probabilities(model: PreTrainedModel, inputs: Tensor, positions: Tensor) -> Tensor:
    """Return what a model predicts at positions (B, T) of its inputs, as log-probabilities (n, V) on the CPU."""
    with scored_at(model, positions.to(model.device)):
        logits = model(input_ids=inputs.to(model.device)).logits
    return logits.float().log_softmax(-1).cpu()


def _corrupted(
    pieces: Tensor, chosen: Tensor, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator
) -> Tensor:
    """Return pieces (B, T) with the chosen tokens hidden, most of them behind the mask."""
    assert isinstance(tokenizer.mask_token_id, int)
    lot = torch.rand(pieces.shape, generator=generator)
    others = torch.randint(len(tokenizer), pieces.shape, generator=generator)
    masked = chosen & (lot < _MASKED_SHARE)
    replaced = chosen & ~masked & (lot < _MASKED_SHARE + _REPLACED_SHARE)
    return torch.where(replaced, others, pieces.masked_fill(masked, tokenizer.mask_token_id))
