"""ONNX files: small ones, in one piece where the format allows it, with layers in 8 bits where asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .extra import quietly
from .tables import GraphTable

# Smaller tables are not worth a node more.
_LEAST_BYTES = 1024
# A file of protobuf holds less than 2 GiB; larger tensors go into a file beside it.
_MOST_BYTES = (1 << 31) - (1 << 24)
# Where torch's exporter notes of each node in which modules it was made.
_CLASSES = "pkg.torch.onnx.class_hierarchy"


def write_graph(graph: Any, path: Path) -> None:
    """Write an ONNX model, as small as it can be without another value in it."""
    import onnx_ir

    strip(graph)
    halve_exact_floats(graph)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    onnx_ir.save(graph, path, external_data=f"{path.name}_data" if size > _MOST_BYTES else None)


def strip(graph: Any) -> None:
    """Drop what is no part of the model: where in whose source code a node came from, and shapes that follow."""
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if not output.is_graph_output():
                output.shape = output.type = None
    graph.graph.metadata_props.clear()
    graph.metadata_props.clear()
    graph.doc_string = graph.graph.doc_string = None
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()


def halve_exact_floats(graph: Any) -> None:
    """Store floats in 16 bits that these hold exactly, as a compact table's are; a runtime widens them at load."""
    import onnx_ir

    for name, value in list(graph.graph.initializers.items()):
        tensor = value.const_value
        if tensor.dtype != onnx_ir.DataType.FLOAT or tensor.nbytes < _LEAST_BYTES or value.is_graph_output():
            continue
        floats = tensor.numpy()
        with np.errstate(over="ignore"):
            halves = floats.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), floats):
            continue
        stored = onnx_ir.Value(
            name=f"{name}.float16",
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
            shape=onnx_ir.Shape(halves.shape),
            const_value=onnx_ir.tensor(halves, name=f"{name}.float16"),
        )
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].name = f"{name}.float32"
        value.replace_all_uses_with(cast.outputs[0])
        del graph.graph.initializers[name]
        graph.graph.initializers[stored.name] = stored
        graph.graph.insert_before(graph.graph[0], cast)


def with_int8_layers(graph: Any) -> Any:
    """Return an ONNX model with the weights of its layers in 8 bits, by ONNX Runtime's dynamic quantisation.

    What a compact table does is left as it is: it is no layer, and small already.
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    table = [node.name for node in graph.graph if GraphTable.__name__ in node.metadata_props.get(_CLASSES, "")]
    strip(graph)
    with tempfile.TemporaryDirectory(prefix="compact-export-") as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
        large = size > _MOST_BYTES
        onnx_ir.save(graph, source, external_data="weights" if large else None)
        with quietly():
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=table,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
            )
        quantized = onnx_ir.load(target)
        for value in quantized.graph.initializers.values():
            # Read before the file goes.
            value.const_value = onnx_ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return quantized
