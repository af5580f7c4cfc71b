"""The methods: one object each, that says how to fit it and what its fit needs; and fitting by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError, config_error
from ..modeling.options import BUDGETS, StructureConfig, StructureLayout
from ..modeling.structure import PRIVATE_ID_BITS, CompactEmbedding, structure_class_of
from .source import FitSource

# What a fit may ask for beside the table.
Need = Literal["counts", "texts", "token_strings", "contextual_states", "sensitivity"]
NEEDS: tuple[Need, ...] = ("counts", "texts", "token_strings", "contextual_states", "sensitivity")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is known of a fit before any row is coded.

    Attributes:
        bytes: that it takes.
        expected_error: what it leaves by the cost model, relative to coding nothing, rows weighing as in the fit.
        coded: from sorted ids (n,) to a structure of these rows as the whole fit would code them.
    """

    bytes: int
    expected_error: float
    coded: Callable[[Tensor], CompactEmbedding]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, whole.

    Attributes:
        structure: the class that stands for a table.
        fit: from options and a source to a structure.
        needs: from options to what their fit reads beside the table.
        candidates: from rows, width and bytes to the options that are worth trying for a table of that size.
        predict: from options and a source to what is known of the fit before any row is coded. Without it `plan()`
            fits to a sample.
    """

    structure: type[CompactEmbedding]
    fit: Callable[[Any, FitSource], CompactEmbedding]
    needs: Callable[[Any], frozenset[Need]]
    candidates: Callable[[int, int, int], list[Any]]
    predict: Callable[[Any, FitSource], Prediction] | None = None

    @property
    def name(self) -> str:
        """The name of the method."""
        return self.structure.options_class.method


_METHODS: dict[str, Method] = {}
_PARTS = {
    "structure": "the class that is under `@register_structure`",
    "fit": "a function (options, source) -> structure",
    "needs": "a function (options) -> frozenset of " + ", ".join(map(repr, NEEDS)),
    "candidates": "a function (rows, width, max_bytes) -> list of options; [] if the method is never a candidate",
}


def register_method(**parts: Any) -> Method:
    """Register a method, given the attributes of `Method`; it must be whole, and its name new."""
    missing = [part for part in _PARTS if parts.get(part) is None]
    if missing:
        raise TypeError("A method lacks " + "; ".join(f"`{part}`, {_PARTS[part]}" for part in missing) + ".")
    method = Method(**parts)
    _require_whole(method.structure)
    if structure_class_of(method.name) is not method.structure:
        raise TypeError(f"{method.structure.__name__} is not what is registered as the structure of {method.name!r}.")
    unknown = sorted(set(method.needs(method.structure.options_class())) - set(NEEDS))
    if unknown:
        raise TypeError(f"The method {method.name!r} needs {unknown}; what there is: {', '.join(NEEDS)}.")
    if method.name in _METHODS:
        raise TypeError(f"The method {method.name!r} is registered already: take another name.")
    _METHODS[method.name] = method
    return method


def _require_whole(structure: type[CompactEmbedding]) -> None:
    name = structure.__name__
    for attribute in ("options_class", "layout_class"):
        if not hasattr(structure, attribute):
            raise TypeError(f"{name} lacks the class attribute `{attribute}`: name its dataclass there.")
    if not isinstance(getattr(structure.options_class, "method", None), str):
        raise TypeError(f"{structure.options_class.__name__} lacks `method`, the name of the method.")
    for method in ("layout_for", "coded_vectors", "coded_scores", "reset_parameters", "keep_rows"):
        if not any(method in vars(base) for base in structure.__mro__ if base not in CompactEmbedding.__mro__):
            raise TypeError(f"{name} lacks `{method}()`: see what CompactEmbedding says of it.")


def registered_methods() -> list[Method]:
    """Return all methods, by name."""
    return [_METHODS[name] for name in sorted(_METHODS)]


def method_of(options: StructureConfig) -> Method:
    """Return the method that options are of."""
    if options.method not in _METHODS:
        raise CompactConfigError(
            f"Nothing fits the method {options.method!r}: a file fitting/fit_{options.method}.py must call "
            "`register_method()`."
        )
    return _METHODS[options.method]


def make_config(method: str, **options: object) -> StructureConfig:
    """Build the options of a method; unknown ones raise."""
    options_class = structure_class_of(method).options_class
    known = [field.name for field in dataclasses.fields(options_class)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise CompactConfigError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}."
        )
    return options_class(**options)  # type: ignore[arg-type]


@torch.no_grad()
def fit_structure(options: StructureConfig, source: FitSource) -> CompactEmbedding:
    """Return a structure that stands for the source's table within its budget, rounded to its storage dtype."""
    rows, width = source.table.shape
    if options.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            layout = structure_class_of(options.method).random_layout(options, rows, width)
            structure = empty_structure(options, source, layout)
            structure.reset_parameters()
            return structure.round_to_storage()
    budget = options.budget(rows, width, source.table.element_size())
    if budget is not None:
        source = dataclasses.replace(source, max_bytes=_left_for_codes(options, source, budget))
    structure = method_of(options).fit(options, source)
    if source.private_ids.numel():
        structure.set_private_rows(source.private_ids, source.table[source.private_ids].float())
    structure.round_to_storage()
    for name, parameter in structure.named_parameters():
        if not parameter.isfinite().all():
            allowed = f"`{name}` would hold values beyond it: take bfloat16 or float32"
            raise config_error("storage_dtype", options.storage_dtype, allowed)
    if budget is not None and structure.nbytes > budget:
        raise CompactConfigError(f"The options take {structure.nbytes:,} bytes, more than the budget of {budget:,}.")
    return structure


def _left_for_codes(options: StructureConfig, source: FitSource, budget: int) -> int:
    """Return the bytes of a budget that rows kept exactly leave."""
    name = next(name for name in BUDGETS if getattr(options, name) is not None)
    if budget >= source.table.nbytes:
        raise config_error(name, getattr(options, name), f"the dense table takes {source.table.nbytes:,} bytes already")
    kept = source.private_ids.numel()
    exact = kept * private_row_bytes(options, source.table.shape[1])
    if budget <= exact:
        allowed = f"{kept:,} rows kept exactly take {exact:,} bytes of a budget of {budget:,}"
        raise config_error(name, getattr(options, name), allowed)
    return budget - exact


def empty_structure(options: StructureConfig, source: FitSource, layout: StructureLayout | None = None) -> Any:
    """Return a structure for the source's table without values; its sizes follow from the options, or are given."""
    rows, width = source.table.shape
    structure_class = structure_class_of(options.method)
    sizes = structure_class.layout_for(options, rows, width, source.max_bytes) if layout is None else layout
    return structure_class(options, sizes, rows, width, source.padding_idx, source.scale)


def stored_bytes(options: StructureConfig, layout: StructureLayout, width: int) -> int:
    """Return exactly what a structure takes for a table of this width, without building it."""
    with torch.device("meta"):
        return structure_class_of(options.method)(options, layout, layout.coded_rows, width).nbytes


def private_row_bytes(options: StructureConfig, width: int) -> int:
    """Return the bytes of a row that is stored exactly."""
    return width * options.float_bytes + PRIVATE_ID_BITS // 8
