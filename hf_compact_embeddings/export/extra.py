"""The extra that exporting to ONNX needs, imported where it is used."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator

from ..modeling.errors import CompactConfigError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise, naming the extra, unless all that an export needs is installed."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CompactConfigError(
                f"Exporting to ONNX needs the package {name}, which the extra `onnx` brings: "
                "`pip install 'hf_compact_embeddings[onnx]'`."
            ) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the talk of these packages, about others that are not needed too, off the screen."""
    # One of them logs through the root.
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
