"""Makes the golden checkpoints of this release's formats, for what has none yet.

Run `python -m tests.golden.make` once when a method, the version of its format or what it stores is new. What is there
is never made again: that old checkpoints keep their meaning is what the golden ones are for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting import registered_methods

from ..cases import TINY_CASES

FOLDER = Path(__file__).parent
ROWS, WIDTH = 120, 24
# The table and the head tied to it, and nothing between: a checkpoint takes a few KB.
SIZES = {"num_hidden_layers": 0, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8}
ROWS_TO_KEEP = slice(None, None, 7)
IDS = torch.tensor([[2, 17, 23, 11, 0]])


@dataclasses.dataclass(frozen=True)
class Golden:
    """What to make a checkpoint of.

    Attributes:
        method: the method's name.
        options: of the method's configuration.
        rows: of the table.
        width: of the table.
        alike: whether half of the rows are almost the same, so that they share a cluster, whose codeword is short.
    """

    method: str
    options: Mapping[str, Any]
    rows: int = ROWS
    width: int = WIDTH
    alike: bool = False

    def table(self) -> Tensor:
        """Return the dense table, whose columns matter less and less, as those of trained tables do."""
        table = torch.randn(self.rows, self.width, generator=torch.Generator().manual_seed(0))
        if self.alike:
            table[: self.rows // 2] = table[0] + 0.01 * table[: self.rows // 2]
        return 0.05 * table * torch.linspace(1.5, 0.5, self.width)

    def model(self) -> BertForMaskedLM:
        """Return the dense model."""
        torch.manual_seed(0)
        dense = BertForMaskedLM(BertConfig(vocab_size=self.rows, hidden_size=self.width, **SIZES)).eval()
        dense.get_input_embeddings().weight.data.copy_(self.table())
        return dense


def goldens() -> dict[str, Golden]:
    """Return what to make checkpoints of, by the names of their folders: method, format version, what is special."""
    names = [method.name for method in registered_methods() if method.name in TINY_CASES]
    found = {(name, ""): Golden(name, TINY_CASES[name][0].options) for name in names}
    clusters = next(case.options for case in TINY_CASES["rotated"] if case.name == "clusters")
    found["rotated", "_clusters"] = Golden("rotated", clusters)
    found["rotated", "_alike"] = Golden("rotated", clusters, alike=True)
    found["rotated", "_long_rows"] = Golden("rotated", LONG_ROWS, rows=200, width=96)
    versions = {method.name: method.structure.options_class.format_version for method in registered_methods()}
    return {f"{name}_{versions[name]}{special}": golden for (name, special), golden in found.items()}


# Rows of real checkpoints take 38 to 95 bytes, and their axes see up to 16 bits of them.
LONG_ROWS = {"bits_per_weight": 6.5, "max_window_bits": 16, "tiers": 3}


def make(folder: Path, golden: Golden) -> None:
    """Write a checkpoint, and what it has to give: some decoded rows and the outputs for a few ids."""
    compact = hce.compress(golden.model(), golden.method, private_rows=1, seed=0, **golden.options).eval()
    compact.save_pretrained(folder)
    # The code of a release is in its history; the golden files are data alone.
    for code in folder.glob("*.py"):
        code.unlink()
    with torch.no_grad():
        rows = compact.get_input_embeddings().dense()[ROWS_TO_KEEP]
        outputs = {"rows": rows, "logits": compact(IDS).logits}
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    for name, golden in goldens().items():
        if not (FOLDER / name).exists():
            make(FOLDER / name, golden)
