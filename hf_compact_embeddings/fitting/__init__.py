"""Dense table in, structure out: numerics on tensors, which know no model and no file."""

from __future__ import annotations

import importlib
import pkgutil

from .methods import Method, fit_structure, method_of, register_method, registered_methods
from .source import FitSource

# A method is found by its file: fit_<method>.py registers its method when imported.
for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("fit_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FitSource", "Method", "fit_structure", "method_of", "register_method", "registered_methods"]
