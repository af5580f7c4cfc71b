"""Linear layers whose weights are 8-bit codes with a scale for each row, or 4-bit codes with one for 32 values.

| tensor | shape | type | meaning |
|---|---|---|---|
| `codes` | int8: (N, K) | uint8 | the bytes of signed codes |
| | int4: (N, 16 G) | uint8 | two codes a byte, 8 too high: low bits for columns below 16 G, high for others |
| `scales` | int8: (N,); int4: (N, G) | float | a value is its signed code times the scale of its row, or of its group |
| `bias` | (N,) | float | as in the native layer |

The native weight is (N, K), or its transpose in models that store it so; G is K / 32, rounded up.
`config.compact_layers` says which layers of a model these are, and as what all floats beside the tables are stored.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .architectures import FURTHER_PARTS, is_same_place
from .errors import CheckpointError, CompactConfigError, UnsupportedArchitectureError, config_error
from .options import STORAGE_DTYPES, CheckedFields, choice, integer
from .tied import TableOutline
from .transformers_internals import mark_as_initialized

GROUP = 32
_BITS = {"int8": 8, "int4": 4, "none": 16}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersLayout(CheckedFields):
    """What `config.compact_layers` holds.

    Attributes:
        codes: of the weights of linear layers; "none" where these are floats too.
        floats: the type in a saved file of all floats that belong to no table; in memory they have the model's.
        paths: of the layers that have codes, with `*` in the place of numbers.
        format_version: grows when an older checkpoint could be misread.
    """

    codes: str = choice("none", "int8", "int4")
    floats: str = choice("float16", "bfloat16", "float32")
    paths: tuple[str, ...] = ()
    format_version: int = integer(1, 1, 1)


class LayerOutline(TableOutline):
    """The weight of a layer, without values; unlike that of a table it is where the layer is."""

    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool, device: torch.device) -> Self:
        """Take no memory."""
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=requires_grad)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what reads or writes values."""
        outline = args[0] if args else None
        try:
            seen = super().__torch_dispatch__(function, types, args, kwargs)
        except UnsupportedArchitectureError:
            raise UnsupportedArchitectureError(
                "The weight of a linear layer is stored as codes, which nothing can be computed with or added to "
                f"({function}): looked for code that calls the layer. An adapter stays beside it, or is merged into "
                "the model that `hf_compact_embeddings.decompress()` gives."
            ) from None
        if not isinstance(outline, LayerOutline) or seen is outline:
            return seen
        return cls(tuple(seen.shape), seen.dtype, False, outline.device)


class CompactLinear(nn.Linear):
    """A linear layer that decodes its weight at each call. Its codes are never trained; scales and bias can be."""

    is_compact_layer = True
    bias: Any
    codes: Tensor

    def __init__(self, native: nn.Linear | Conv1D, codes: str) -> None:
        """Take the place of a native layer, without values."""
        nn.Module.__init__(self)
        self.transposed, self.bits = isinstance(native, Conv1D), _BITS[codes]
        rows, columns = native.weight.T.shape if self.transposed else native.weight.shape
        self.out_features, self.in_features = rows, columns
        groups = -(-columns // GROUP)
        like: dict[str, Any] = {"device": native.weight.device}
        stored = columns if self.bits == 8 else groups * GROUP // 2
        self.register_buffer("codes", torch.empty(rows, stored, dtype=torch.uint8, **like))
        shape = (rows,) if self.bits == 8 else (rows, groups)
        self.scales = nn.Parameter(
            torch.empty(shape, dtype=native.weight.dtype, **like), requires_grad=native.weight.requires_grad
        )
        self.register_parameter("bias", native.bias)
        # What starts linear layers anew has nothing to start here.
        mark_as_initialized(self)

    def forward(self, input: Tensor) -> Tensor:
        """Return outputs (..., N) of inputs (..., K)."""
        if self.bits == 8 and self.scales.dtype == torch.float32 and not torch.is_autocast_enabled(input.device.type):
            # Scaling the outputs is less work; in half precision they could overflow before.
            sums = F.linear(input, self._signed_codes())
            return sums * self.scales if self.bias is None else torch.addcmul(self.bias, sums, self.scales)
        return F.linear(input, self.values(), self.bias)

    def values(self) -> Tensor:
        """Decode the weight (N, K)."""
        scales = self.scales.unsqueeze(-1)
        if self.bits == 8:
            return self._signed_codes() * scales
        grouped = self._signed_codes().view(self.out_features, -1, GROUP) * scales
        return grouped.flatten(1)[:, : self.in_features]

    def _signed_codes(self) -> Tensor:
        dtype = self.scales.dtype
        if self.bits == 8:
            return self.codes.view(torch.int8).to(dtype)
        return torch.cat([self.codes & 15, self.codes >> 4], dim=1).to(dtype) - 8

    def native_weight(self) -> Tensor:
        """Decode the weight as the native layer has it."""
        return self.values().T.contiguous() if self.transposed else self.values()

    def check_values(self) -> None:
        """Raise `CheckpointError` if a loaded value is none, and take codes back that were loaded as floats."""
        # What a model keeps in float32, as T5 does in half precision, it names by modules, with all that is in them.
        self.codes = self.codes.to(torch.uint8)
        for name, parameter in self.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise CheckpointError(f"`{name}` of a linear layer holds NaN or infinity.")

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.codes.device

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Shape, dtype and device of the weight, for code that asks; no values."""
        shape = (self.out_features, self.in_features)
        return LayerOutline(shape, self.scales.dtype, self.scales.requires_grad, self.device)

    def reset_parameters(self) -> None:
        """Do nothing: there is no random start of codes."""

    def extra_repr(self) -> str:
        """Show the shape that the layer has, and its codes."""
        return f"{super().extra_repr()}, codes=int{self.bits}"


def compact_layers(model: nn.Module) -> dict[str, CompactLinear]:
    """Return the linear layers that have codes, by path, also those of a checkpoint that brought its own code."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "is_compact_layer")}


def without_numbers(path: str) -> str:
    """Return the path of a module with `*` for the numbers of layers."""
    return _NUMBER.sub("*", path)


class CompactLayers:
    """What a model with small layers does that others do not."""

    @staticmethod
    def install(model: PreTrainedModel, stored: Any) -> None:
        """Put compact layers, without values, in the place of the linear ones that a configuration names."""
        if stored is None:
            return
        try:
            layout = LayersLayout.from_json(stored, "compact_layers")
            if not all(isinstance(path, str) for path in layout.paths):
                raise config_error("paths", layout.paths, "it must be a list of names")
        except CompactConfigError as error:
            raise CheckpointError(f"`compact_layers` in the model's configuration: {error}") from error
        for path, module in list(model.named_modules()):
            named = without_numbers(path)
            if type(module) in (nn.Linear, Conv1D) and any(is_same_place(named, home) for home in layout.paths):
                model.set_submodule(path, CompactLinear(module, layout.codes))

    @staticmethod
    def round_floats(model: Any, state: dict[str, Tensor]) -> None:
        """Give the floats of a state that belong to no table the type that they have in a saved file."""
        dtypes = stored_dtypes(model)
        rounded: dict[object, Tensor] = {}
        for key, tensor in state.items():
            # What is tied stays one tensor; what has no memory here, as where it is offloaded, is told by its name.
            place = (tensor.data_ptr(), *tensor.shape) if tensor.device.type != "meta" else key
            if key in dtypes:
                state[key] = rounded.setdefault(place, tensor.to(dtypes[key]))


def stored_dtypes(model: Any) -> dict[str, torch.dtype]:
    """Return the types that floats of no table have in a saved file, by name, where those are not the model's."""
    if model.config.compact_layers is None:
        return {}
    floats = STORAGE_DTYPES[model.config.compact_layers["floats"]]
    tables = tuple(f"{path}." for path in model.compact_tables)
    state = model.state_dict()
    return {key: floats for key, value in state.items() if value.is_floating_point() and not key.startswith(tables)}


FURTHER_PARTS["compact_layers"] = CompactLayers
