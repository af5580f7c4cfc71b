"""A compact model in, a folder out that ONNX Runtime, sentence-transformers, fastembed and transformers.js open."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import copy_sentence_files, load_compact, load_tokenizer, require_free_folder
from ..compression import native_config
from ..drafts import whole_folder
from ..modeling.errors import CompactConfigError, CompactEmbeddingsError, config_error
from ..modeling.modeling_compact import CompactModelMixin
from ..modeling.transformers_internals import native_class
from ..progress import stage
from .encoders import GraphModel, Pooling, is_headed, output_names, pooling_of, require_exportable, sample_inputs
from .extra import require_onnx
from .files import with_int8_layers, write_graph
from .graph import OPSETS, to_graph
from .tables import GraphTable, in_float32, with_graph_tables

# How far an exported graph's outputs may be from the model's, relative to the largest of them where that is above 1.
TOLERANCE = 1e-4
_LAYERS = (None, "int8")
_FLOAT_FILE, _INT8_FILE = "model.onnx", "model_quantized.onnx"


class ExportError(CompactEmbeddingsError):
    """An exported model does not give what the model itself gives."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where to.
        files: bytes of each ONNX file, by its path in the folder.
        inputs: what the graph takes.
        outputs: what it gives.
        opset: version of ONNX's operators.
        pooling: how `sentence_embedding` is made, if it is.
        head: how a head scores through a compact table, if it does: "decoded", once, when a runtime loads the graph,
            or "tiles", anew at each run, which takes a sixteenth of the memory and more time.
        largest_difference: between outputs of the float32 graph and of the model, on the samples that both were run on.
    """

    folder: str
    files: dict[str, int]
    inputs: list[str]
    outputs: list[str]
    opset: int
    pooling: str | None
    head: str | None
    largest_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [(name, f"{size / 1e6:,.2f} MB") for name, size in self.files.items()]
        lines += [("inputs", ", ".join(self.inputs)), ("outputs", ", ".join(self.outputs)), ("opset", str(self.opset))]
        if self.pooling is not None:
            lines.append(("pooling", self.pooling))
        if self.head is not None:
            lines.append(("head's table", self.head))
        lines += [("largest difference", f"{self.largest_difference:.1e}"), ("written to", self.folder)]
        return "\n".join(f"{name:<28}{value}" for name, value in lines)


def export_onnx(
    model: PreTrainedModel | str | Path,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: str | None = None,
    pooling: str | None = None,
    opset: int = OPSETS[0],
) -> Exported:
    """Write a compact model as ONNX, with its table still compact in the graph, and check that it gives the same.

    Args:
        model: a compact model, or a Hub id or folder of one.
        folder: where to; must be absent or empty.
        tokenizer: saved beside the graph; by default that of the Hub id or folder.
        layers: "int8" writes another file, `model_quantized.onnx`, with the layers' weights in 8 bits.
        pooling: "mean" or "cls" adds an output `sentence_embedding` of length 1; by default as what
            sentence-transformers has beside the model says; "none" adds nothing.
        opset: version of ONNX's operators, 18 to 21.
    """
    require_onnx()
    target = require_free_folder(folder)
    if layers not in _LAYERS:
        raise config_error("layers", layers, "allowed are None and 'int8'")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        allowed = f"{OPSETS[0]} to {OPSETS[1]} have the operators that codes are read with"
        raise config_error("opset", opset, allowed)
    source = None if isinstance(model, PreTrainedModel) else model
    if source is not None:
        model, tokenizer = load_compact(source), tokenizer or load_tokenizer(source)
    if not isinstance(model, CompactModelMixin):
        raise CompactConfigError(f"`model` is a {type(model).__name__}, which is not compact.")
    pool = pooling_of(source, pooling)
    if pooling is None and is_headed(model):
        pool = None
    require_exportable(model, pool)
    with whole_folder(target) as draft:
        exported = _write(model, draft, tokenizer, layers, pool, opset)
        if source is not None:
            copy_sentence_files(source, draft)
    return dataclasses.replace(exported, folder=str(target))


def _write(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    layers: str | None,
    pooling: Pooling | None,
    opset: int,
) -> Exported:
    """Write everything into a new folder."""
    prepared = with_graph_tables(model)
    inputs = sample_inputs(prepared, tokenizer)
    outputs = output_names(prepared, pooling)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    (folder / "onnx").mkdir()
    with stage("Tracing the model"):
        graph = to_graph(GraphModel(prepared, pooling), inputs, outputs, opset, longest)
    written = {_FLOAT_FILE: graph}
    if layers is not None:
        with stage("Quantising the layers"):
            written[_INT8_FILE] = with_int8_layers(graph)
    for name, one in written.items():
        write_graph(one, folder / "onnx" / name)
    with stage("Comparing"):
        difference = _difference(GraphModel(in_float32(model), pooling), inputs, folder / "onnx" / _FLOAT_FILE)
    config = native_config(model)
    config.architectures = [native_class(type(model)).__name__]
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return Exported(
        folder=str(folder),
        files={f"onnx/{file.name}": file.stat().st_size for file in sorted((folder / "onnx").iterdir())},
        inputs=list(inputs),
        outputs=outputs,
        opset=opset,
        pooling=None if pooling is None else pooling.mode,
        head=_head_of(prepared),
        largest_difference=difference,
    )


def _head_of(prepared: PreTrainedModel) -> str | None:
    """Return how the head that scores through a compact table does so, or None where there is none."""
    head: Any = prepared.get_output_embeddings()
    table = getattr(head, "table", None)
    if not isinstance(table, GraphTable):
        return None
    return "decoded" if table.decodes_at_once else "tiles"


def _difference(module: torch.nn.Module, traced: dict[str, torch.Tensor], path: Path) -> float:
    """Return how far a graph is from a model, on other shapes than it was traced with; raise if that is too far."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, length in ((1, 4), (2, 6)):
        inputs = {name: value[:batch, -length:].contiguous() for name, value in traced.items()}
        with torch.no_grad():
            wanted = module(**inputs)
        given = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for one, other in zip(wanted, given, strict=True):
            scale = max(1.0, float(one.abs().max()))
            worst = max(worst, float((one - torch.from_numpy(other)).abs().max()) / scale)
    if not worst <= TOLERANCE:
        raise ExportError(f"The graph's outputs differ from the model's by {worst:.1e}: nothing was written.")
    return worst
