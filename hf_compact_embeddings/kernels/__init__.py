"""Fast paths for look-up and scoring: what takes more memory than codes, for those who ask for it."""

from __future__ import annotations

from .materialized import materialize
from .rows import RUNTIMES

__all__ = ["RUNTIMES", "materialize"]
