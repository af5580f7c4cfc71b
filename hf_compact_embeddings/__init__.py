"""Compact embedding tables for Transformers models.

Importing the package registers `Compact…` config and model classes with the Auto classes. They are also
attributes of the package: `from hf_compact_embeddings import CompactBertForSequenceClassification`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__, require_supported_transformers

require_supported_transformers()

from . import checked_models, registration, training  # noqa: E402, F401
from .compression import compress, decompress  # noqa: E402
from .evaluation.report import Report, inspect  # noqa: E402
from .evaluation.tasks import Evaluation, evaluate  # noqa: E402
from .export import Exported, ExportError, export_onnx  # noqa: E402
from .hub import HubError, TaskResult, push_to_hub  # noqa: E402
from .kernels import materialize  # noqa: E402
from .modeling import modeling_compact  # noqa: E402
from .modeling.errors import (  # noqa: E402
    CheckpointError,
    CompactConfigError,
    CompactEmbeddingsError,
    UnsupportedArchitectureError,
)
from .modeling.options import StructureConfig  # noqa: E402
from .modeling.structure import CompactEmbedding, methods  # noqa: E402
from .modeling.structure_blocks import BlocksConfig  # noqa: E402
from .modeling.structure_factorized import FactorizedConfig  # noqa: E402
from .modeling.structure_hash import HashConfig  # noqa: E402
from .modeling.structure_rotated import RotatedConfig  # noqa: E402
from .modeling.structure_scalar import ScalarConfig  # noqa: E402
from .modeling.structure_subspace import SubspaceConfig  # noqa: E402
from .modeling.tokenization_hash import CompactHashTokenizer  # noqa: E402
from .planning import Plan, plan  # noqa: E402
from .quantization import CompactEmbeddingsQuantization  # noqa: E402

registration.register()

__all__ = [
    "BlocksConfig",
    "CalibrationError",
    "CheckpointError",
    "CompactConfigError",
    "CompactEmbedding",
    "CompactEmbeddingsError",
    "CompactEmbeddingsQuantization",
    "CompactHashTokenizer",
    "Evaluation",
    "ExportError",
    "Exported",
    "FactorizedConfig",
    "HashConfig",
    "HubError",
    "KeepCompactCard",
    "Plan",
    "Report",
    "RotatedConfig",
    "ScalarConfig",
    "StructureConfig",
    "SubspaceConfig",
    "TaskResult",
    "UnsupportedArchitectureError",
    "__version__",
    "calibrate",
    "compress",
    "decompress",
    "evaluate",
    "export_onnx",
    "inspect",
    "materialize",
    "methods",
    "plan",
    "push_to_hub",
    "training",
]

if TYPE_CHECKING:
    from .compact_classes import *  # noqa: F403
    from .hub.training_card import KeepCompactCard
    from .training import CalibrationError, calibrate
else:

    def __getattr__(name: str) -> object:
        # What needs Trainer takes seconds to import, and the classes are too many to make before they are asked for.
        if name in ("CalibrationError", "calibrate"):
            return getattr(training, name)
        if name == "KeepCompactCard":
            from .hub.training_card import KeepCompactCard

            return KeepCompactCard
        if name.startswith(modeling_compact.PREFIX):
            return getattr(modeling_compact, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *registration.compact_class_names()})
