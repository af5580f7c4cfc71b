"""Puts the compact classes into the Auto classes, by name, so that nothing is imported before it is used.

The only file that touches the private tables behind the Auto classes.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, TOKENIZER_MAPPING_NAMES

from .modeling import modeling_compact
from .modeling.modeling_compact import PREFIX
from .modeling.tokenization_hash import CompactHashTokenizer

MODEL_TYPE_PREFIX = "compact-"
# What the lazy mappings believe to be the module of our model types; resolved through `_modules`.
_MODULE_NAME = "compact_embeddings"


class _HashTokenizerKey(PreTrainedConfig):
    """A tokenizer is registered under a configuration; this one finds its own by the class that it was saved with."""

    model_type = f"{MODEL_TYPE_PREFIX}words"


def register() -> None:
    """Register every config and head that Transformers' own mappings list. Safe to call twice."""
    for native, config_name in list(CONFIG_MAPPING_NAMES.items()):
        if native.startswith(MODEL_TYPE_PREFIX):
            continue
        compact = MODEL_TYPE_PREFIX + native
        CONFIG_MAPPING_NAMES[compact] = PREFIX + config_name
        configuration_auto.SPECIAL_MODEL_TYPE_TO_MODULE_NAME[compact] = _MODULE_NAME
    CONFIG_MAPPING._modules[_MODULE_NAME] = modeling_compact
    for mapping in _lazy_mappings():
        _register_names(mapping, mapping._model_mapping, prefix=PREFIX)
    # A compact model reads text with its native tokenizer.
    _register_names(TOKENIZER_MAPPING, TOKENIZER_MAPPING_NAMES, prefix="")
    AutoTokenizer.register(_HashTokenizerKey, tokenizer_class=CompactHashTokenizer, exist_ok=True)


def _lazy_mappings() -> list[Any]:
    """Return the lazy mapping of each Auto model class."""
    found = {}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None:
            found[id(mapping)] = mapping
    return list(found.values())


def _register_names(mapping: Any, names: MutableMapping[str, Any], prefix: str) -> None:
    for native, value in list(names.items()):
        if native.startswith(MODEL_TYPE_PREFIX) or value is None:
            continue
        names[MODEL_TYPE_PREFIX + native] = (
            prefix + value if isinstance(value, str) else tuple(prefix + v for v in value)
        )
    mapping._modules[_MODULE_NAME] = modeling_compact
    for compact, config_name in mapping._config_mapping.items():
        if compact.startswith(MODEL_TYPE_PREFIX):
            mapping._reverse_config_mapping[config_name] = compact


def compact_class_names() -> list[str]:
    """Return the names of all registered config and model classes."""
    names = {name for compact, name in CONFIG_MAPPING_NAMES.items() if compact.startswith(MODEL_TYPE_PREFIX)}
    for mapping in _lazy_mappings():
        for compact, value in mapping._model_mapping.items():
            if compact.startswith(MODEL_TYPE_PREFIX):
                names.update([value] if isinstance(value, str) else value)
    return sorted(names)
