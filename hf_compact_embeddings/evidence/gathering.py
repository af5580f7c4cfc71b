"""What a fit is given about a table, gathered once: evidence in, a `FitSource` out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..fitting import FitSource
from ..modeling.architectures import InputTable
from ..modeling.errors import CompactConfigError
from .exact_rows import exact_rows
from .frequencies import count_tokens, given_counts
from .sensitivity import sensitivity_metric
from .states import contextual_states
from .texts import Texts, read_texts

# What a method may need. Counts and token strings are given where they are known; the others must be had.
NEEDS = ("counts", "texts", "token_strings", "contextual_states", "sensitivity")
_UNMET = {
    "texts": "`texts` is missing: the method reads texts, with a `tokenizer`.",
    "contextual_states": "`features` is 'contextual', but contextual states need `texts` and a `tokenizer`.",
    "sensitivity": "`metric` is 'sensitivity', but it needs `texts` and a `tokenizer`.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about the rows of a table; what takes a pass over texts is found when it is first asked for.

    Attributes:
        model: the dense model.
        table: its input table.
        tokenizer: the model's tokenizer, if there is one.
        texts: texts like those that the model will read, if there are any.
        token_counts: counts (V,) that were given; they go before those of the texts.
        seed: of all random choices.
        device: where to fit.
    """

    model: PreTrainedModel
    table: InputTable
    tokenizer: PreTrainedTokenizerBase | None
    texts: Texts | None
    token_counts: Tensor | None
    seed: int
    device: torch.device

    @cached_property
    def counts(self) -> Tensor | None:
        """How often each token occurs (V,), or None where neither counts nor texts were given."""
        if self.token_counts is not None or self.texts is None or self.tokenizer is None:
            return self.token_counts
        return count_tokens(self.texts, self.tokenizer, self.table.module.num_embeddings)

    @cached_property
    def token_strings(self) -> list[str] | None:
        """How the tokens are written (V of them), or None without a tokenizer."""
        if self.tokenizer is None:
            return None
        # Tables often have more rows than the tokenizer has tokens.
        known = {token_id: token for token, token_id in self.tokenizer.get_vocab().items()}
        return [known.get(row, f"[unused row {row}]") for row in range(self.table.module.num_embeddings)]

    @cached_property
    def contextual_states(self) -> Tensor:
        """Each token's mean contextual state (V, H)."""
        texts, tokenizer = self._read("contextual_states")
        return contextual_states(texts, tokenizer, self.model)

    @cached_property
    def sensitivity(self) -> Tensor:
        """What an error in a row costs, as a positive semi-definite matrix (D, D)."""
        texts, tokenizer = self._read("sensitivity")
        return sensitivity_metric(texts, tokenizer, self.model, self.seed)

    def _read(self, need: str) -> tuple[Texts, PreTrainedTokenizerBase]:
        if self.texts is None or self.tokenizer is None:
            raise CompactConfigError(_UNMET[need])
        return self.texts, self.tokenizer

    def exact_rows(self, private_rows: int = 0) -> Tensor:
        """Return the sorted ids of the rows to keep: padding, special tokens, the most frequent up to `private_rows`.

        Where neither counts nor texts tell which are the most frequent, more than the first two cannot be had.
        """
        # Counting takes a pass over all texts, which nothing is gained by where the other rows suffice.
        kept = exact_rows(self.table, self.tokenizer, None)
        return kept if len(kept) >= private_rows else exact_rows(self.table, self.tokenizer, self.counts, private_rows)

    def fit_source(
        self, needs: Collection[str] = ("counts",), *, private_rows: int = 0, from_scratch: bool = False
    ) -> FitSource:
        """Return what a fit starts from.

        Args:
            needs: out of NEEDS; nothing else is looked for.
            private_rows: rows to keep exactly, at least the padding row and special tokens.
            from_scratch: nothing is fitted, so that no row is kept and nothing is read.
        """
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"A method needs {sorted(unknown)}, but there are {', '.join(NEEDS)}.")
        if from_scratch:
            needs = ()
        if "texts" in needs:
            self._read("texts")
        module = self.table.module
        return FitSource(
            table=module.weight.detach(),
            counts=self.counts if "counts" in needs else None,
            features=self.contextual_states if "contextual_states" in needs else None,
            metric=self.sensitivity if "sensitivity" in needs else None,
            tied=self.table.scores,
            token_strings=self.token_strings if "token_strings" in needs else None,
            private_ids=torch.empty(0, dtype=torch.int64) if from_scratch else self.exact_rows(private_rows),
            padding_idx=module.padding_idx,
            scale=self.table.scale,
            seed=self.seed,
            device=self.device,
        )


def gather(
    model: PreTrainedModel,
    table: InputTable,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_counts: Any = None,
    texts: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Evidence:
    """Return what is known about a table, checked as far as that takes no time.

    Args:
        model: the dense model.
        table: its input table.
        tokenizer: the model's tokenizer.
        token_counts: how often each token occurs (V,); or "tokenizer", as far as the tokenizer itself tells.
        texts: texts, or where they are, as `read_texts` takes them.
        seed: of all random choices.
        device: where to fit; by default a GPU where there is one.
    """
    if texts is not None and tokenizer is None:
        raise CompactConfigError("`tokenizer` is missing: `texts` cannot be read without it.")
    rows = table.module.num_embeddings
    return Evidence(
        model,
        table,
        tokenizer,
        None if texts is None else read_texts(texts),
        None if token_counts is None else given_counts(token_counts, tokenizer, rows),
        seed,
        torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )
