"""Makes the golden checkpoints of this release's format, for what has none yet.

Run `python -m tests.golden.make` once when a format version, a method or what it stores is new. What is there is never
made again: that old checkpoints keep their meaning is what the golden ones are for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.structure import FORMAT_VERSION

from ..cases import TINY_CASES, Case

FOLDER = Path(__file__).parent
ROWS, WIDTH = 120, 24
# The table and the head tied to it, and nothing between: a checkpoint takes a few KB.
SIZES = {"num_hidden_layers": 0, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8}
ROWS_TO_KEEP = slice(None, None, 7)
IDS = torch.tensor([[2, 17, 63, 119, 0]])


def cases() -> dict[str, Case]:
    """Return what to make a checkpoint of, by name: a case of each method, and those that store more than it."""
    found = {method: TINY_CASES[method][0] for method in hce.methods() if method in TINY_CASES}
    clusters = next(case for case in TINY_CASES["rotated"] if case.name == "clusters")
    # Names of clusters and tiers were all of one length at first: those files are from then.
    return found | {"rotated_clusters": clusters, "rotated_names": clusters}


def golden_name(name: str) -> Path:
    return FOLDER / f"format_{FORMAT_VERSION}_{name}"


def make(name: str, case: Case) -> None:
    """Write a checkpoint, and what it has to give: some decoded rows and the outputs for a few ids."""
    torch.manual_seed(0)
    dense = BertForMaskedLM(BertConfig(vocab_size=ROWS, hidden_size=WIDTH, **SIZES)).eval()
    if name == "rotated_names":
        # Rows that are alike share a cluster, and what most rows share has a shorter name than the rest.
        rows = dense.get_input_embeddings().weight.data
        rows[: ROWS // 2] = rows[0] + 0.01 * rows[: ROWS // 2]
    compact = hce.compress(dense, case.config(private_rows=1), seed=0).eval()
    folder = golden_name(name)
    compact.save_pretrained(folder)
    # The code of a release is in its history; the golden files are data alone.
    for code in folder.glob("*.py"):
        code.unlink()
    with torch.no_grad():
        outputs = {"rows": compact.get_input_embeddings().dense()[ROWS_TO_KEEP], "logits": compact(IDS).logits}
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    for name, case in cases().items():
        if not golden_name(name).exists():
            make(name, case)
