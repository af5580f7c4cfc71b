"""Linear layers made small: which layers those are, what their codes are, and as what all else is stored."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .evidence.texts import text_batches
from .fitting.fit_layers import code_layer
from .modeling.errors import CompactConfigError, CompactEmbeddingsError, config_error
from .modeling.layers import CompactLinear, LayersLayout, stored_dtypes, without_numbers
from .modeling.modeling_compact import CompactModelMixin
from .modeling.options import STORAGE_DTYPES
from .progress import stage
from .transformers_internals import ignored_on_save

logger = logging.get_logger(__name__)

Layers = Literal["int8", "int4", "float16", "bfloat16"]
_KINDS = ("int8", "int4", "float16", "bfloat16")
# What is read to see how the inputs of layers are spread: enough for the widest, and no more than seconds take.
_TEXTS, _TEXTS_PER_BATCH, _MAX_LENGTH = 128, 16, 128
# What these spreads may take in memory at a time.
_SPREAD_BYTES = 1 << 30


def require_known(layers: object) -> None:
    """Raise if layers cannot be stored so."""
    if layers is not None and layers not in _KINDS:
        raise config_error("layers", layers, f"known are {', '.join(map(repr, _KINDS))}, and None to leave them as is")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Return the linear layers of a model's base that can have codes, by path.

    Heads stay as they are: other heads take their place, and untied ones are tables (`tables="all"`).
    """
    base, head = model.base_model, model.get_output_embeddings()
    tables = model.compact_tables.values() if isinstance(model, CompactModelMixin) else ()
    left = {head, *(module for table in tables for module in table.modules())}
    left |= {model.get_submodule(name.rpartition(".")[0]) for name in model.all_tied_weights_keys}
    inside, paths = set(base.modules()) - left, [path for path, _ in model.named_modules(remove_duplicate=False)]
    found: dict[nn.Module, list[str]] = {}
    for path in paths:
        module = model.get_submodule(path)
        if type(module) in (nn.Linear, Conv1D) and module in inside:
            found.setdefault(module, []).append(path)
    # What stands in two places would have to stay one.
    return {paths[0]: module for module, paths in found.items() if len(paths) == 1}


def shrink_layers(
    model: CompactModelMixin,
    layers: Layers,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Iterable[Any] | None = None,
) -> CompactModelMixin:
    """Give a compact model small layers, in place, and return it.

    Args:
        model: a compact model.
        layers: how their weights are stored.
        tokenizer: with texts, lets the errors of 4-bit codes make up for each other on what layers read.
        texts: what is read for that.
    """
    if model.config.compact_layers is not None:
        raise CompactConfigError(f"`model` has small layers already: {model.config.compact_layers['codes']}.")
    is_coded = layers in ("int8", "int4")
    # A scale that bfloat16 rounds would move a whole row.
    floats: Any = layers if not is_coded else "float16"
    _require_fitting(model, floats)
    found = linear_layers(model) if is_coded else {}
    if layers == "int4" and tokenizer is not None and texts is not None:
        _code_with_texts(model, found, floats, tokenizer, texts)
    else:
        _code(model, found, layers, floats)
    layout = LayersLayout(
        codes=layers if is_coded else "none", floats=floats, paths=tuple(dict.fromkeys(map(without_numbers, found)))
    )
    model.config.compact_layers = layout.to_json()
    model.store_tables()
    _round_floats(model)
    return model


def with_small_layers(model: CompactModelMixin, layers: Layers, **options: Any) -> CompactModelMixin:
    """Return a copy of a compact model with small layers."""
    return shrink_layers(copy.deepcopy(model), layers, **options)


def _require_fitting(model: PreTrainedModel, floats: str) -> None:
    most = torch.finfo(STORAGE_DTYPES[floats]).max
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.numel() and float(value.abs().max()) > most:
            raise CompactConfigError(
                f"`{name}` holds values beyond {floats}, whose largest is {most:g}: "
                'take `layers="bfloat16"`, or leave the layers as they are.'
            )


@torch.no_grad()
def _code(
    model: PreTrainedModel,
    found: Mapping[str, Any],
    codes: str,
    floats: str,
    spreads: Mapping[str, Tensor] | None = None,
) -> None:
    for path, native in found.items():
        weight = native.weight.detach()
        weight = weight.T if isinstance(native, Conv1D) else weight
        layer = CompactLinear(native, codes)
        stored, scales = code_layer(weight, layer.bits, STORAGE_DTYPES[floats], (spreads or {}).get(path))
        layer.codes.copy_(stored)
        layer.scales.copy_(scales)
        layer.train(native.training)
        model.set_submodule(path, layer)


def _code_with_texts(
    model: PreTrainedModel,
    found: Mapping[str, Any],
    floats: str,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Any],
) -> None:
    """Code layers in metrics of their inputs: some layers at a time, which read what those before them give by then."""
    batches = list(_some_batches(texts, tokenizer))
    with stage("Reading what layers read"):
        for some in _in_parts(found):
            _code(model, some, "int4", floats, _spreads(model, some, batches))


def _in_parts(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    part: dict[str, Any] = {}
    size = 0
    for path, module in found.items():
        columns = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        taken = 4 * columns * columns
        if part and size + taken > _SPREAD_BYTES:
            yield part
            part, size = {}, 0
        part[path] = module
        size += taken
    yield part


def _some_batches(texts: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> Iterator[Any]:
    read = 0
    for batch in text_batches(texts, "Reading texts for the layers", _TEXTS_PER_BATCH):
        yield tokenizer(batch, truncation=True, max_length=_MAX_LENGTH, padding=True, return_tensors="pt")
        read += len(batch)
        if read >= _TEXTS:
            return


@torch.no_grad()
def _spreads(model: PreTrainedModel, found: Mapping[str, Any], batches: list[Any]) -> dict[str, Tensor]:
    """Return the mean products of the inputs of layers (K, K), by path; none of layers that read nothing."""
    sums: dict[str, Tensor] = {}
    kept: Tensor | None = None

    def reads(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].detach().flatten(0, -2).float()
            if kept is not None and len(flat) == len(kept):
                flat = flat[kept]
            sums[path] = sums[path].addmm_(flat.T, flat) if path in sums else flat.T @ flat

        return hook

    hooks = [module.register_forward_pre_hook(reads(path)) for path, module in found.items()]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            kept = inputs["attention_mask"].flatten().bool()
            if model.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = inputs["input_ids"]
            model.base_model(**inputs)
    except CompactEmbeddingsError:
        raise
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # Models that read something else than tokens alone, or run in a way of their own.
        logger.warning(f"What the layers of {type(model).__name__} read could not be found: {error}")
        return {}
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sums


@torch.no_grad()
def _round_floats(model: Any) -> None:
    """Round all floats to values that saving and loading give back bit by bit."""
    dtypes, made_anew = stored_dtypes(model), ignored_on_save(model)
    for name, value in model.state_dict().items():
        if name in dtypes and name not in made_anew:
            value.copy_(value.to(dtypes[name]))
