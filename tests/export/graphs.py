"""What tests of exported graphs share: running them, and the models that they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from hf_compact_embeddings.export.graph import to_graph

# Batches and lengths that no graph was traced with.
SHAPES = ((1, 1), (2, 9), (5, 30))


def run_graph(path: Path, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the outputs of an ONNX file by their names."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def random_inputs(rows: int, batch: int, length: int, **others: Any) -> dict[str, torch.Tensor]:
    """Return ids of any token, and a mask that hides the end of the first sequence."""
    ids = torch.randint(2, rows, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, length - length // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def write_look_up(table: torch.nn.Module, path: Path, opset: int = 18) -> Any:
    """Write a graph that looks rows of a table up, and return it."""
    import onnx_ir

    graph = to_graph(_LookUp(table), {"input_ids": torch.arange(6).view(2, 3)}, ["rows"], opset, None)
    onnx_ir.save(graph, path)
    return graph


class _LookUp(torch.nn.Module):
    def __init__(self, table: torch.nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.table(input_ids),)
