"""From a module to an ONNX graph with dynamic batch and length, through torch's own exporter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .extra import quietly, require_onnx

OPSETS = (18, 21)


def to_graph(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], opset: int, longest: int | None) -> Any:
    """Return the ONNX model of a module.

    Args:
        module: called with the inputs as keywords; returns a tuple of tensors.
        inputs: of each, a sample (batch, length).
        outputs: names of what it returns.
        opset: version of ONNX's operators.
        longest: the greatest length that the model takes, where it has one.
    """
    length = torch.export.Dim("sequence_length", max=longest) if longest else torch.export.Dim("sequence_length")
    axes = {0: torch.export.Dim("batch_size"), 1: length}
    with quietly(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (),
            kwargs=inputs,
            dynamic_shapes=dict.fromkeys(inputs, axes),
            input_names=list(inputs),
            output_names=outputs,
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=_translations(),
        )
    assert program is not None
    return program.model


def _translations() -> dict[Any, Any]:
    """Return what torch's exporter does not know: shifts. Codes are never negative, so unsigned ones are the same."""
    require_onnx()
    import onnx_ir
    from onnxscript import opset18 as op

    def shift(direction: str) -> Any:
        def translated(self: Any, other: Any) -> Any:
            signed = self.dtype
            wide = onnx_ir.DataType.UINT32 if signed == onnx_ir.DataType.INT32 else onnx_ir.DataType.UINT64
            if not isinstance(other, int):
                other = op.Cast(other, to=wide)
            else:
                other = op.Cast(op.Constant(value_int=other), to=wide)
            return op.Cast(op.BitShift(op.Cast(self, to=wide), other, direction=direction), to=signed)

        return translated

    aten = torch.ops.aten
    left, right = shift("LEFT"), shift("RIGHT")
    return {
        aten.__lshift__.Tensor: left,
        aten.__lshift__.Scalar: left,
        aten.__rshift__.Tensor: right,
        aten.__rshift__.Scalar: right,
    }
