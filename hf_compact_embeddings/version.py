"""The version, and the check of Transformers' own, which must come before anything else is imported."""

from __future__ import annotations

import importlib.metadata

from packaging.version import Version

__version__ = "0.1.0"

# Loading needs parts that came in 5.6; until 5.9 code in a local folder was copied without what its files import, and
# 5.10 does not run on the oldest torch that is supported.
LOWEST_TRANSFORMERS = "5.11.0"


def require_supported_transformers() -> None:
    """Raise if the installed Transformers is older than the lowest that the tests run with."""
    installed = importlib.metadata.version("transformers")
    if Version(installed) < Version(LOWEST_TRANSFORMERS):
        raise ImportError(
            f"hf_compact_embeddings needs transformers {LOWEST_TRANSFORMERS} or newer, but {installed} is installed. "
            f"Run `pip install --upgrade 'transformers>={LOWEST_TRANSFORMERS}'`."
        )
