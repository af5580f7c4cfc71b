"""Whole checkpoints: folders whose files are damaged, loaded with `from_pretrained` and used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from ..cases import Case, compress_tiny
from ..tiny_models import tiny_inputs
from .attempts import CHANGED, EQUAL, REFUSALS, REFUSED
from .mutations import change_bytes, change_json, change_tensors

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# What has to be there for a configuration to be that of a compact model at all, and what only a model may be slow by.
_KEPT = ("num_hidden_layers", "model_type")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, and the folder that its damaged copies are written into, one after the other."""

    folder: Path
    model_class: Any
    table: str
    config: dict[str, Any]
    weights: bytes
    digest: str

    @classmethod
    def of(cls, case: Case, folder: Path, architecture: str = "bert") -> Checkpoint:
        _, compact = compress_tiny(architecture, case)
        compact.save_pretrained(folder)
        # What this is about lies in the two others.
        for code in folder.glob("*.py"):
            code.unlink()
        config, weights = json.loads((folder / _CONFIG).read_text()), (folder / _WEIGHTS).read_bytes()
        del config["compact_code"]
        return cls(
            folder,
            type(compact),
            compact.input_table_path,
            config,
            weights,
            digest_of(type(compact).from_pretrained(folder)),
        )

    def damage(self, draw: random.Random) -> None:
        """Write a copy with one or two changes."""
        config, weights, text = self.config, self.weights, b""
        for _ in range(draw.choice((1, 1, 2))):
            kind = draw.randrange(8)
            if kind < 2:
                config = change_json(draw, config) | {name: self.config[name] for name in _KEPT}
            elif kind < 4 and isinstance(config.get("compact_embeddings"), dict):
                config = {**config, "compact_embeddings": change_json(draw, config["compact_embeddings"])}
            elif kind < 6:
                # What lies beside the table is as safe as in any model: Transformers reads it.
                tensors = load(self.weights)
                table = {name: tensors.pop(name) for name in list(tensors) if self.table in name}
                tensors |= change_tensors(draw, table)
                weights = save({name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"})
            elif kind == 6:
                weights = change_bytes(draw, weights)
            else:
                text = change_bytes(draw, json.dumps(config).encode())
        (self.folder / _CONFIG).write_bytes(text or json.dumps(config).encode())
        (self.folder / _WEIGHTS).write_bytes(weights)

    def attempt(self, seed: int) -> str:
        """Load and use the checkpoint with the damage of a seed, and return the outcome."""
        self.damage(random.Random(seed))
        try:
            model = self.model_class.from_pretrained(self.folder)
        except REFUSALS:
            return REFUSED
        except Exception as error:
            return f"loading ends in {type(error).__name__}: {error}"
        try:
            return EQUAL if digest_of(model) == self.digest else CHANGED
        except Exception as error:
            return f"use ends in {type(error).__name__}: {error}"


def digest_of(model: Any) -> str:
    """Return a hash of the scores of a model; raise if they are not finite."""
    with torch.no_grad():
        scores = model.eval()(**tiny_inputs(model)).logits
    if not scores.isfinite().all():
        raise ArithmeticError("scores are not finite")
    return hashlib.sha256(scores.numpy().tobytes()).hexdigest()
