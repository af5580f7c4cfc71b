"""What an error in an embedding row costs: how far it moves what the model gives over texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..fitting.reproducible import product_over_rows, symmetric_eigen
from ..model_outputs import mean_pooled
from ..modeling.architectures import find_input_table
from ..progress import steps
from .score_sensitivity import sensitivity_of_scores
from .states import base_encoder
from .tables import Table
from .texts import Text, no_tokens, some_texts

# A few hundred texts fix a matrix of this size well enough: it is smoothed before it is used.
# The gradients of a text's tokens are much alike: few of them do.
_TEXTS = 256
_TEXTS_PER_BATCH = 8
_MAX_LENGTH = 32
# Random directions of the output for each text: one alone leaves a metric that is too noisy for the smallest budgets.
_DIRECTIONS = 3
# Of the mean cost, in directions that matter to nothing that was read: a few texts do not show all.
_SHRINKAGE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """What errors in rows cost, as far as texts show.

    Attributes:
        metric: the cost δᵀMδ of an error δ, as a positive definite matrix (D, D), float64.
        doubts: how much doubt there is of each token (V,) in what the model predicts, the sum of p (1 - p); None where
            no head scores through the table.
        states: some of what enters that head (n, D), scaled so that their products with rows are logits; else None.
    """

    metric: Tensor
    doubts: Tensor | None = None
    states: Tensor | None = None


def find_sensitivity(
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    seed: int = 0,
    table: Table | None = None,
) -> Sensitivity:
    """Return what errors cost: by what they do to the scores where a head scores through the table, else to states.

    Args:
        texts: that the model reads.
        tokenizer: of the model.
        model: the dense model.
        seed: of all random choices.
        table: by default the input table.
    """
    table = find_input_table(model) if table is None else table
    training = model.training
    model.eval()
    try:
        heads = scoring_heads(model, table)
        # Whatever the caller does with gradients, here they are needed.
        with torch.inference_mode(False), torch.enable_grad():
            if heads:
                return Sensitivity(*sensitivity_of_scores(texts, tokenizer, model, table, heads, seed))
            return Sensitivity(_of_states(texts, tokenizer, model, seed))
    finally:
        model.train(training)


def scoring_heads(model: PreTrainedModel, table: Table) -> list[nn.Linear]:
    """Return the output layers that score through the table: those that are tied to it, or whose own it is."""
    layers = [model.get_submodule(path) for path in (*table.paths, *table.tied_paths)]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _of_states(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, seed: int) -> Tensor:
    """Return the square root (D, D) of the mean outer product of the output's gradients for embedded tokens.

    The output is the direction of the mean last hidden state. Its gradients along random directions stand for the
    whole Jacobian, so errors along the large axes of the result are those that the output shows. Of the product itself
    a fit would leave out too much: errors are not as small as gradients assume.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder, table = base_encoder(model), model.get_input_embeddings()

    def gradients(batch: list[str]) -> Tensor:
        encoded = tokenizer(batch, truncation=True, max_length=_MAX_LENGTH, padding=True, return_tensors="pt")
        mask = encoded["attention_mask"].to(model.device)
        rows = table(encoded["input_ids"].to(model.device)).detach().requires_grad_(True)
        states = encoder(inputs_embeds=rows, attention_mask=mask).last_hidden_state
        output = normalize(mean_pooled(states, mask), dim=-1)
        found = []
        for left in reversed(range(_DIRECTIONS)):
            direction = torch.randn(output.shape, generator=generator).to(output)
            (gradient,) = torch.autograd.grad((output * direction).sum(), rows, retain_graph=left > 0)
            found.append(gradient[mask.bool()])
        return torch.cat(found)

    variances, axes = symmetric_eigen(_mean_outer_product(gradients(batch) for batch in _batches(texts)))
    costs = variances.clamp(min=0.0).sqrt()
    return (axes * (costs + _SHRINKAGE * costs.mean())) @ axes.T


def _batches(texts: Iterable[Text]) -> Iterator[list[str]]:
    """Yield some texts, a few at a time; those of a length go together, so that little is padded."""
    chosen = sorted(some_texts(texts)[:_TEXTS], key=len)
    for start in steps(range(0, len(chosen), _TEXTS_PER_BATCH), "Reading batches"):
        yield chosen[start : start + _TEXTS_PER_BATCH]


def _mean_outer_product(parts: Iterable[Tensor]) -> Tensor:
    """Return the mean of vᵀv over vectors (n, D) that come in parts, float64."""
    total: Tensor | float = 0.0
    count = 0
    for part in parts:
        vectors = part.double().cpu()
        total += product_over_rows(vectors, vectors)
        count += len(vectors)
    if not isinstance(total, Tensor):
        raise no_tokens()
    return total / count
