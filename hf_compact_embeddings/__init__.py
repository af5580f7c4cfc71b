"""Compact embedding tables for Transformers models.

Importing the package registers `Compact…` config and model classes with the Auto classes. They are also
attributes of the package: `from hf_compact_embeddings import CompactBertForSequenceClassification`.
"""

from __future__ import annotations

from typing import Any

from .version import __version__, require_supported_transformers

require_supported_transformers()

from . import registration, training  # noqa: E402
from .compression import compress, decompress  # noqa: E402
from .evaluation.report import Report, inspect  # noqa: E402
from .evaluation.tasks import Evaluation, evaluate  # noqa: E402
from .fitting import registered_methods  # noqa: E402
from .hub import HubError, TaskResult, push_to_hub  # noqa: E402
from .modeling import modeling_compact  # noqa: E402
from .modeling.errors import (  # noqa: E402
    CheckpointError,
    CompactConfigError,
    CompactEmbeddingsError,
    UnsupportedArchitectureError,
)
from .modeling.options import StructureConfig  # noqa: E402
from .modeling.structure import CompactEmbedding, methods  # noqa: E402
from .modeling.tokenization_hash import CompactHashTokenizer  # noqa: E402
from .planning import Plan, plan  # noqa: E402

registration.register()

__all__ = [
    "CheckpointError",
    "CompactConfigError",
    "CompactEmbedding",
    "CompactEmbeddingsError",
    "CompactHashTokenizer",
    "Evaluation",
    "HubError",
    "Plan",
    "Report",
    "StructureConfig",
    "TaskResult",
    "UnsupportedArchitectureError",
    "__version__",
    "compress",
    "decompress",
    "evaluate",
    "inspect",
    "methods",
    "plan",
    "push_to_hub",
    "training",
]

# Each method's configuration class is a public name: SubspaceConfig and its like.
_OPTIONS_CLASSES = [method.structure.options_class for method in registered_methods()]
_METHOD_CONFIGS = {options_class.__name__: options_class for options_class in _OPTIONS_CLASSES}
# What is imported from `training` when it is asked for.
_TRAINING = ("CalibrationError", "calibrate")
# Needs Trainer, which takes seconds to import.
_CALLBACK = "KeepCompactCard"


def __getattr__(name: str) -> Any:
    if name in _METHOD_CONFIGS:
        return _METHOD_CONFIGS[name]
    if name in _TRAINING:
        return getattr(training, name)
    if name == _CALLBACK:
        from .hub.training_card import KeepCompactCard

        return KeepCompactCard
    if name.startswith(modeling_compact.PREFIX):
        return getattr(modeling_compact, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_METHOD_CONFIGS, *_TRAINING, _CALLBACK, *registration.compact_class_names()})
