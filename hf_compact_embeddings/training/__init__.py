"""Training: calibration against the original, and pretraining without a vocabulary."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .blending import blend
    from .calibration import calibrate
    from .token_manipulation import (
        DataCollatorForTokenManipulation,
        encoder_of,
        packed_rows,
        token_manipulation_model,
    )
    from .trainer import CalibrationError

__all__ = [
    "CalibrationError",
    "DataCollatorForTokenManipulation",
    "blend",
    "calibrate",
    "encoder_of",
    "packed_rows",
    "token_manipulation_model",
]

if not TYPE_CHECKING:
    # Importing any of these imports Trainer's dependencies or Trainer itself, which takes seconds.
    _MODULES = {
        "CalibrationError": "trainer",
        "DataCollatorForTokenManipulation": "token_manipulation",
        "blend": "blending",
        "calibrate": "calibration",
        "encoder_of": "token_manipulation",
        "packed_rows": "token_manipulation",
        "token_manipulation_model": "token_manipulation",
    }

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
