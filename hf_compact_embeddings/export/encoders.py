"""What an exported model takes and gives: ids and a mask in, states or scores out, a sentence vector where asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model_outputs import mean_pooled
from ..modeling.errors import CompactConfigError, UnsupportedArchitectureError, config_error

POOLINGS = ("mean", "cls", "none")
# Of the samples that a graph is traced with; no sizes of models.
_BATCH, _LENGTH = 3, 7


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How one vector is made of a sentence's states.

    Attributes:
        mode: "mean" of the tokens' states, or that of the first token, "cls".
        normalize: whether its length is made 1.
    """

    mode: str
    normalize: bool = True


class GraphModel(nn.Module):
    """A model as the graph runs it: plain tensors in, a tuple of them out."""

    def __init__(self, model: PreTrainedModel, pooling: Pooling | None) -> None:
        """Run a model, and pool its states."""
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """Return logits alone; or the last hidden states and, with pooling, sentence vectors."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        # Only what generates keeps a cache.
        options = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        outputs = self.model(**inputs, **options, return_dict=True)
        if "logits" in outputs:
            return (outputs.logits,)
        states = outputs.last_hidden_state
        if self.pooling is None:
            return (states,)
        vectors = states[:, 0] if self.pooling.mode == "cls" else mean_pooled(states, attention_mask)
        return states, nn.functional.normalize(vectors, dim=-1) if self.pooling.normalize else vectors


def output_names(model: PreTrainedModel, pooling: Pooling | None) -> list[str]:
    """Return the names of what the graph gives, which those who read it look for."""
    if is_headed(model):
        return ["logits"]
    return ["last_hidden_state"] + (["sentence_embedding"] if pooling else [])


def is_headed(model: PreTrainedModel) -> bool:
    """Whether a model gives scores, and not states."""
    return model.base_model is not model


def require_exportable(model: PreTrainedModel, pooling: Pooling | None) -> None:
    """Raise if the graph cannot hold a model."""
    if model.config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} reads two sequences: looked for an encoder, or for a decoder alone."
        )
    if pooling is not None and is_headed(model):
        raise CompactConfigError(
            f"`pooling` is {pooling.mode!r}, but {type(model).__name__} gives scores: only states are pooled."
        )


def pooling_of(folder: str | Path | None, asked: str | None) -> Pooling | None:
    """Return the pooling that is asked for, or that of the sentence-transformers files in a folder, or None."""
    if asked is not None:
        if asked not in POOLINGS:
            raise config_error("pooling", asked, "allowed are " + ", ".join(map(repr, POOLINGS)))
        return None if asked == "none" else Pooling(asked)
    modules = None if folder is None else Path(folder) / "modules.json"
    if modules is None or not modules.is_file():
        return None
    kinds = {str(module["type"]).rsplit(".", 1)[-1]: module for module in json.loads(modules.read_text("utf-8"))}
    if "Pooling" not in kinds:
        return None
    settings = json.loads((modules.parent / kinds["Pooling"]["path"] / "config.json").read_text("utf-8"))
    # Of newer releases, one name; of older ones, a flag for each.
    mode = settings.get("pooling_mode")
    flags = {"mean": settings.get("pooling_mode_mean_tokens"), "cls": settings.get("pooling_mode_cls_token")}
    chosen = [name for name, on in flags.items() if on or mode == name]
    if len(chosen) != 1:
        raise CompactConfigError(f"The folder pools by {mode or settings}: a graph can by 'mean' or 'cls'.")
    return Pooling(chosen[0], "Normalize" in kinds)


def sample_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Tensor]:
    """Return inputs to trace a model with; of its tokenizer's, where there is one."""
    wanted = ["input_ids", "attention_mask"]
    if tokenizer is not None and "token_type_ids" in tokenizer.model_input_names:
        wanted.append("token_type_ids")
    table: Any = model.get_input_embeddings()
    count = _BATCH * _LENGTH
    # From all over the vocabulary.
    ids = (torch.arange(count) * max(1, table.num_embeddings // count) % table.num_embeddings).view(_BATCH, _LENGTH)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: every[name] for name in wanted}
