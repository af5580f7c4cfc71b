"""Pretraining without a vocabulary: tell which tokens of a text were replaced, and whence (Xue & Aletras, 2022).

The head is the architecture's own token classifier with three labels; only the data is special.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..modeling.errors import config_error
from ..modeling.transformers_internals import registered_model_class

KEPT, SHUFFLED, RANDOM = 0, 1, 2
LABELS = {KEPT: "kept", SHUFFLED: "shuffled", RANDOM: "random"}
IGNORED = -100
_POSITIONAL = ("attention_mask", "token_type_ids", "special_tokens_mask", "labels")


def token_manipulation_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a new model that classifies each token as kept, shuffled or random."""
    config = copy.deepcopy(config)
    config.id2label = dict(LABELS)
    config.label2id = {name: label for label, name in LABELS.items()}
    return AutoModelForTokenClassification.from_config(config)


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder of a pretrained model without its head: what to save, and to fine-tune with other heads."""
    config = copy.deepcopy(model.config)
    config.num_labels = 2
    config.architectures = None
    prefix = f"{model.base_model_prefix}."
    state = {
        name.removeprefix(prefix): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    encoder_class = registered_model_class(type(config))
    encoder = encoder_class.from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    return encoder.to(model.device)


def packed_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> dict[str, list[Any]]:
    """Return the model's inputs of texts joined and cut into rows of `length` tokens; only the last is shorter.

    `datasets.map(batched=True)` takes what this returns.
    """
    edges = tokenizer("")
    names = [name for name in tokenizer.model_input_names if name in edges]
    room = length - len(edges["input_ids"])
    if room < 1:
        raise config_error("length", length, f"{len(edges['input_ids'])} of a row's tokens are special ones")
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    rows: dict[str, list[Any]] = {}
    for name in names:
        tokens = list(chain.from_iterable(encoded[name]))
        parts = (tokens[start : start + room] for start in range(0, len(tokens), room))
        rows[name] = [[*edges[name][:1], *part, *edges[name][1:]] for part in parts]
    return rows


@dataclasses.dataclass
class DataCollatorForTokenManipulation:
    """Pads rows, replaces some of their tokens, and labels all of them.

    Each ordinary token is, with `shuffle_probability`, replaced by another one of its row (label 1); else, with
    `random_probability`, by a random one (label 2); else kept (label 0). A token that is replaced by itself counts as
    kept. Special tokens and padding keep the label -100, which losses ignore. Signatures move with their ids.

    There is no vocabulary to draw a random token from, so it is drawn from the different tokens that this collator has
    seen, each as likely as any other: as from a vocabulary. (Drawn as often as they occur, they fit in so well that a
    small model learns nothing.)

    Attributes:
        tokenizer: pads the rows, and knows its special tokens.
        shuffle_probability: of a token to be replaced by another one of its row.
        random_probability: of one of the others to be replaced by a random one.
        pad_to_multiple_of: pad to a length that this number divides.
        pool_size: different tokens to draw random ones from, those seen last.
    """

    tokenizer: PreTrainedTokenizerBase
    shuffle_probability: float = 0.1
    random_probability: float = 0.1
    pad_to_multiple_of: int | None = None
    pool_size: int = 1 << 16

    def __post_init__(self) -> None:
        """Check the probabilities."""
        for field in ("shuffle_probability", "random_probability"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:
                raise config_error(field, value, "a probability is from 0 to 1")
        if self.pool_size < 1:
            raise config_error("pool_size", self.pool_size, "it must be at least 1")
        self._pool: dict[str, Tensor] = {}

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of tensors with `labels`."""
        names = self.tokenizer.model_input_names
        rows = [{name: row[name] for name in names if name in row} for row in features]
        batch = dict(
            self.tokenizer.pad(rows, padding=True, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt")
        )
        moved = [name for name in batch if name not in _POSITIONAL]
        ids = batch["input_ids"]
        ordinary = ~torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        if "attention_mask" in batch:
            ordinary &= batch["attention_mask"].bool()
        shuffled, sources = self._shuffled(ordinary)
        random = ordinary & ~shuffled & (torch.rand(ids.shape) < self.random_probability)
        self._remember({name: batch[name][ordinary] for name in moved})
        drawn = torch.randint(max(1, len(self._pool["input_ids"])), (int(random.sum()),))
        for name in moved:
            original = batch[name]
            changed = original.clone()
            changed[shuffled] = original.flatten(0, 1)[sources]
            changed[random] = self._pool[name][drawn]
            batch[name] = changed
        labels = torch.full_like(ids, IGNORED).masked_fill(ordinary, KEPT)
        different = batch["input_ids"] != ids
        labels[shuffled & different] = SHUFFLED
        labels[random & different] = RANDOM
        return {**batch, "labels": labels}

    def _shuffled(self, ordinary: Tensor) -> tuple[Tensor, Tensor]:
        """Choose tokens (B, L), and for each of them another ordinary one of its row, as flat positions."""
        counts = ordinary.sum(1, keepdim=True)
        shuffled = ordinary & (torch.rand(ordinary.shape) < self.shuffle_probability) & (counts > 1)
        rows, _ = shuffled.nonzero(as_tuple=True)
        rank = (ordinary.cumsum(1) - 1)[shuffled]
        # The ordinary positions of each row come first.
        order = ordinary.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        other = (torch.rand(len(rows)) * (counts[rows, 0] - 1)).long()
        other += other >= rank
        return shuffled, rows * ordinary.shape[1] + order[rows, other]

    def _remember(self, tokens: dict[str, Tensor]) -> None:
        """Add to the pool what it lacks, in the order of when each was last seen."""
        seen = {name: torch.cat([self._pool.get(name, new[:0]), new]) for name, new in tokens.items()}
        unique, owner = seen["input_ids"].unique(return_inverse=True)
        last = torch.zeros_like(unique).scatter_reduce_(0, owner, torch.arange(len(owner)), "amax")
        kept = last.sort().values[-self.pool_size :]
        self._pool = {name: values[kept] for name, values in seen.items()}
