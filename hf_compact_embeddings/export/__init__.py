"""Compact models in other formats: ONNX graphs that hold the table as it is, and dense models again."""

from __future__ import annotations

from .dense import DenseExport, export_dense
from .exporting import Exported, ExportError, export_onnx

__all__ = ["DenseExport", "ExportError", "Exported", "export_dense", "export_onnx"]
