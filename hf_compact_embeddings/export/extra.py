"""The extra that exporting to ONNX needs, imported where it is used."""

from __future__ import annotations

import importlib

from ..modeling.errors import CompactConfigError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def onnx_modules() -> None:
    """Raise, naming the extra, unless all that an export needs is installed."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CompactConfigError(
                f"Exporting to ONNX needs the package {name}, which the extra `onnx` brings: "
                "`pip install 'hf_compact_embeddings[onnx]'`."
            ) from error
