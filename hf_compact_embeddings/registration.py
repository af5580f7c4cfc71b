"""Puts the compact classes into the Auto classes, by name, so that nothing is imported before it is used.

The only file that changes the tables behind the Auto classes; their private parts are in `transformers_internals`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedConfig

from .modeling import modeling_compact
from .modeling.modeling_compact import PREFIX
from .modeling.tokenization_hash import CompactHashTokenizer
from .modeling.transformers_internals import lazy_mappings, model_mappings
from .transformers_internals import (
    CONFIG_MAPPING_NAMES,
    TOKENIZER_MAPPING,
    TOKENIZER_MAPPING_NAMES,
    register_config_names,
    register_model_names,
)

MODEL_TYPE_PREFIX = "compact-"
# What the lazy mappings believe to be the module of our model types.
_MODULE_NAME = "compact_embeddings"


class _HashTokenizerKey(PreTrainedConfig):
    """A tokenizer is registered under a configuration; this one finds its own by the class that it was saved with."""

    model_type = f"{MODEL_TYPE_PREFIX}words"


def register() -> None:
    """Register every config and head that Transformers' own mappings list. Safe to call twice."""
    configs = {MODEL_TYPE_PREFIX + native: PREFIX + name for native, name in _native(CONFIG_MAPPING_NAMES).items()}
    register_config_names(configs, _MODULE_NAME, modeling_compact)
    for names in model_mappings().values():
        names.update({MODEL_TYPE_PREFIX + native: _compact_names(head) for native, head in _native(names).items()})
    # A compact model reads text with its native tokenizer.
    tokenizers = _native(TOKENIZER_MAPPING_NAMES)
    TOKENIZER_MAPPING_NAMES.update({MODEL_TYPE_PREFIX + native: name for native, name in tokenizers.items()})
    for mapping in (*lazy_mappings().values(), TOKENIZER_MAPPING):
        register_model_names(mapping, configs, _MODULE_NAME, modeling_compact)
    AutoTokenizer.register(_HashTokenizerKey, tokenizer_class=CompactHashTokenizer, exist_ok=True)


def _native(names: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a mapping from model type to name that are not ours, and not empty."""
    return {key: value for key, value in names.items() if not key.startswith(MODEL_TYPE_PREFIX) and value is not None}


def _compact_names(heads: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return PREFIX + heads if isinstance(heads, str) else tuple(PREFIX + head for head in heads)


def compact_class_names() -> list[str]:
    """Return the names of the registered config and model classes whose native class is a name of Transformers."""
    names: set[str] = set()
    for mapping in (CONFIG_MAPPING_NAMES, *model_mappings().values()):
        for model_type, value in mapping.items():
            if model_type.startswith(MODEL_TYPE_PREFIX):
                names.update([value] if isinstance(value, str) else value)
    # The Auto classes list some classes by their modules alone.
    public = set(dir(transformers))
    return sorted(name for name in names if name.removeprefix(PREFIX) in public)
