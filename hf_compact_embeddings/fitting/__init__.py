"""Dense table in, structure out: numerics on tensors, which know no model and no file."""

from __future__ import annotations

import importlib
import pkgutil

from .source import FitSource, fit_structure, fits, predictor_of, predicts, recoder_of, recodes

# A method is found by its file: fit_<method>.py registers its function when imported.
for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("fit_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FitSource", "fit_structure", "fits", "predictor_of", "predicts", "recoder_of", "recodes"]
