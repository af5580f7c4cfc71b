"""Compressing while loading: `AutoModel.from_pretrained(name, quantization_config=CompactEmbeddingsQuantization(…))`.

What comes out is an ordinary compact model, which saves in its own format and knows nothing of a quantizer.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .checkpoints import load_tokenizer
from .compression import compress
from .modeling.errors import CompactConfigError
from .modeling.modeling_compact import CompactModelMixin
from .modeling.tied import adopt_tied_modules

_NAME = "compact_embeddings"


@register_quantization_config(_NAME)
class CompactEmbeddingsQuantization(QuantizationConfigMixin):
    """What `compress()` is to be asked for while a dense model is loaded."""

    def __init__(self, method: Any = None, *, tokenizer: Any = "auto", **options: Any) -> None:
        """Keep what `compress()` takes beside a model.

        Args:
            method: a method's name, or a configuration; or None, to plan within a budget.
            tokenizer: the model's tokenizer; by default that which lies beside it, if there is one; None for none.
            options: everything else, as `ratio=100` and `layers="int8"`.
        """
        self.quant_method = _NAME
        self.method, self.tokenizer, self.options = method, tokenizer, options


@register_quantizer(_NAME)
class _CompressingLoader(HfQuantizer):
    """Compresses a model once it is loaded, and leaves nothing of itself behind."""

    quantization_config: CompactEmbeddingsQuantization

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to offload what is to be compressed."""
        places = kwargs.get("device_map")
        if isinstance(places, dict) and len(set(places.values())) > 1:
            raise CompactConfigError(
                f"`device_map` is {places}, but a model is compressed in one place: load it compressed, save it, and "
                "load that with the map."
            )

    def preprocess_model(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        """Refuse a model that is compact already; any other is loaded as it is."""
        if isinstance(model, CompactModelMixin):
            raise CompactConfigError(
                f"`quantization_config` cannot be given: {type(model).__name__} is compact already."
            )

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Compress the model that was loaded, in its place."""
        asked = self.quantization_config
        del model.hf_quantizer, model.config.quantization_config
        tokenizer = asked.tokenizer
        if tokenizer == "auto":
            name = str(model.config.name_or_path or "")
            tokenizer = load_tokenizer(name) if name else None
        _become(model, compress(model, asked.method, tokenizer=tokenizer, **asked.options))

    def is_serializable(self) -> bool:
        """Say that what comes out can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether what comes out can be trained."""
        return True


def _become(model: Any, compact: CompactModelMixin) -> None:
    """Make the instance that is being loaded the compact model: the caller gets no other."""
    model.__class__ = type(compact)
    vars(model).clear()
    vars(model).update(vars(compact))
    adopt_tied_modules(compact, model)
    if "forward" in vars(model):
        for structure in model.compact_tables.values():
            structure.attach(model)
