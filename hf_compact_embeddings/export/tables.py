"""The module that stands for a compact table while a model is exported."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling.errors import CompactConfigError
from ..modeling.layers import CompactLinear, compact_layers
from ..modeling.structure import CompactEmbedding
from .reading import SortedIds, coded_rows_of

# A head's table up to this size is decoded when a runtime loads the graph; a larger one at each run, tile by tile.
DECODED_HEAD_BYTES = 256 << 20
TILES = 16


class GraphTable(nn.Module):
    """Looks rows up and scores them like the structure that it stands for, with operators that a graph can have."""

    private_vectors: nn.Parameter | None

    def __init__(self, structure: CompactEmbedding) -> None:
        """Stand for a structure."""
        super().__init__()
        if getattr(structure, "reads_text", False):
            raise CompactConfigError(
                "A table that reads hashes of words cannot be exported to ONNX: their vectors depend on more than the "
                'ids that runtimes give. Only `source="vocabulary"` has a vocabulary.'
            )
        self.outline: Any = structure.weight
        self.num_embeddings, self.embedding_dim = structure.num_embeddings, structure.embedding_dim
        self.padding_idx, self.scale = structure.padding_idx, structure.scale
        self.layout = structure.layout
        self.coded = coded_rows_of(structure)
        self.private_vectors = structure.private_vectors
        self.private_ids = SortedIds(structure.private_id_list()) if self.private_vectors is not None else None

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the table, on the meta device, for code that asks."""
        return self.outline

    @property
    def decodes_at_once(self) -> bool:
        """Whether all rows are decoded once, to be scored."""
        return 4 * self.num_embeddings * self.embedding_dim <= DECODED_HEAD_BYTES

    def forward(self, inputs: Tensor, project: bool = False, scale: float | None = None) -> Tensor:
        """Look rows up, or score them: see `CompactEmbedding.forward`."""
        if project:
            return self.project(inputs)
        rows = self.rows(inputs.reshape(-1).long())
        scale = self.scale if scale is None else scale
        return (rows if scale == 1.0 else rows * scale).view(*inputs.shape, self.embedding_dim)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows (n, D) of ids (n,), before any scale."""
        layout = self.layout
        vectors = self.coded(ids if layout.coded_rows == self.num_embeddings else ids.clamp(max=layout.coded_rows - 1))
        if layout.mask_padding and self.padding_idx is not None:
            vectors = vectors * (ids != self.padding_idx).unsqueeze(-1)
        if self.private_ids is None or self.private_vectors is None:
            return vectors
        slots, hit = self.private_ids(ids)
        exact = nn.functional.embedding(slots.clamp(max=self.private_vectors.shape[0] - 1), self.private_vectors)
        return torch.where(hit.unsqueeze(-1), exact, vectors)

    def project(self, hidden: Tensor) -> Tensor:
        """Return hidden · Eᵀ (..., V): with all rows at once, which only memory holds, or tile by tile."""
        every = torch.arange(self.num_embeddings)
        if self.decodes_at_once:
            return hidden @ self.rows(every).T
        # What depends on an input is not worked out when the graph is loaded.
        nothing = (hidden.flatten()[:1] * 0).long()
        size = -(-self.num_embeddings // TILES)
        return torch.cat([hidden @ self.rows(tile + nothing).T for tile in every.split(size)], dim=-1)


def in_float32(model: PreTrainedModel) -> Any:
    """Return a copy of a model on the CPU, in float32."""
    return copy.deepcopy(model).cpu().float().eval()


def with_graph_tables(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a compact model, in float32, whose tables can be exported; small layers are decoded."""
    prepared = in_float32(model)
    for path, structure in prepared.compact_tables.items():
        prepared.set_submodule(path, GraphTable(structure))
    for path, layer in compact_layers(prepared).items():
        prepared.set_submodule(path, _decoded(layer))
    return prepared


def _decoded(layer: CompactLinear) -> nn.Linear:
    """Return a layer of floats that gives what a compact one does."""
    with torch.device("meta"):
        found = nn.Linear(layer.in_features, layer.out_features, bias=False)
    found.weight = nn.Parameter(layer.values().detach(), requires_grad=False)
    found.bias = layer.bias
    return found
