"""The version, and the check of Transformers' own, which must come before anything else is imported."""

from __future__ import annotations

import importlib.metadata

__version__ = "0.1.0"


def require_supported_transformers() -> None:
    """Raise if the installed Transformers is older than 5: tied keys, saving and tokenizers differ there."""
    installed = importlib.metadata.version("transformers")
    if int(installed.split(".")[0]) < 5:
        raise ImportError(
            f"hf_compact_embeddings needs transformers 5 or newer, but {installed} is installed. "
            "Run `pip install --upgrade 'transformers>=5'`."
        )
