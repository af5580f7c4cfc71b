"""What small linear layers take, and how far their weights are from the original ones."""

from __future__ import annotations

import dataclasses

import torch
from transformers import PreTrainedModel

from ..modeling.layers import CompactLinear, compact_layers, stored_dtypes
from ..modeling.modeling_compact import CompactModelMixin


@dataclasses.dataclass(frozen=True)
class LayersReport:
    """How linear layers are stored.

    Attributes:
        codes: "int8" or "int4"; "none" where their weights are floats.
        floats: the type of all floats in the file that belong to no table.
        count: how many layers have codes.
        dense_bytes: of their weights, in the model's type.
        compact_bytes: of their codes and scales, as a saved file holds them.
        relative_mse: of the weights, Σ|ŵ − w|² / Σ|w|², where the original is known.
    """

    codes: str
    floats: str
    count: int
    dense_bytes: int
    compact_bytes: int
    relative_mse: float | None = None

    def __str__(self) -> str:
        """Return the figures in one line."""
        if not self.count:
            return f"all floats but the tables' as {self.floats}"
        error = "" if self.relative_mse is None else f", relative MSE {self.relative_mse:.6f}"
        return (
            f"{self.count} as {self.codes}: {self.dense_bytes:,} -> {self.compact_bytes:,} bytes, "
            f"{self.dense_bytes / self.compact_bytes:.1f}x{error}; other floats as {self.floats}"
        )


def dense_layer_bytes(layer: CompactLinear) -> int:
    """Return the bytes of a layer's weight in the model's type."""
    return layer.in_features * layer.out_features * layer.scales.dtype.itemsize


def inspect_layers(compact: CompactModelMixin, against: PreTrainedModel | None) -> LayersReport | None:
    """Report on the layers of a compact model; None where they are as they were."""
    stored = compact.config.compact_layers
    if stored is None:
        return None
    layers, dtypes = compact_layers(compact), stored_dtypes(compact)
    return LayersReport(
        codes=stored["codes"],
        floats=stored["floats"],
        count=len(layers),
        dense_bytes=sum(map(dense_layer_bytes, layers.values())),
        compact_bytes=sum(
            layer.codes.numel() + layer.scales.numel() * dtypes[f"{path}.scales"].itemsize
            for path, layer in layers.items()
        ),
        relative_mse=None if against is None else _error(layers, against),
    )


@torch.no_grad()
def _error(layers: dict[str, CompactLinear], against: PreTrainedModel) -> float | None:
    error = energy = 0.0
    for path, layer in layers.items():
        original = against.get_submodule(path).weight.double().cpu()
        error += float((layer.native_weight().double().cpu() - original).square().sum())
        energy += float(original.square().sum())
    return error / energy if energy else None
