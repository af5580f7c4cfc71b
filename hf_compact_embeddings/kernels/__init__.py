"""Fast paths for look-up and scoring: compiled loops over codes, rows decoded once for who asks, losses by tiles."""

from __future__ import annotations

from ..modeling.structure import CompactEmbedding
from .fast_path import read_codes
from .lazy_scores import let_heads_wait
from .materialized import materialize, require_runtime
from .rows import RUNTIMES
from .windows_rotated import let_rows_be_read_fast

__all__ = ["RUNTIMES", "materialize", "require_runtime"]

CompactEmbedding.fast_path = read_codes  # type: ignore[method-assign, assignment]
let_heads_wait()
let_rows_be_read_fast()
