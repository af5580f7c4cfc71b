"""Fast paths for look-up and scoring: compiled loops over codes, and rows that are decoded once for who asks for it."""

from __future__ import annotations

from ..modeling.structure import set_fast_path
from .fast_path import fast_path
from .materialized import materialize
from .rows import RUNTIMES

__all__ = ["RUNTIMES", "materialize"]

set_fast_path(fast_path)
