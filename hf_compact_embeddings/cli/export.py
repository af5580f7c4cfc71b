"""Write a compact checkpoint for other runtimes: as ONNX, with the table compact in the graph, or as a dense model."""

from __future__ import annotations

import argparse

from .. import progress
from ..export import export_dense, export_onnx
from ..modeling.errors import CompactConfigError
from .outcome import Outcome

_FORMATS = ("onnx", "dense")
# Options of the one format that has any, and what each is where it is not given.
_OF_ONNX = {"layers": None, "pooling": None, "opset": 18}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", help="Hub id or folder of a compact checkpoint, as `hf-compact compress` writes it")
    parser.add_argument("--format", required=True, choices=_FORMATS, help="onnx, or dense: the native model again")
    parser.add_argument("--output", required=True, help="folder to write; must be absent or empty")
    parser.add_argument("--layers", metavar="TYPE", help="int8: also write model_quantized.onnx with layers in 8 bits")
    parser.add_argument(
        "--pooling",
        metavar="MODE",
        help="mean or cls: also give a sentence's vector; by default as its sentence-transformers files say; none",
    )
    parser.add_argument("--opset", type=int, default=_OF_ONNX["opset"], help="of ONNX, 18 (default) to 21")


def run(options: argparse.Namespace) -> Outcome:
    """Export, and say how large the files are."""
    given = {name: getattr(options, name) for name in _OF_ONNX}
    with progress.report(aloud=True):
        if options.format == "onnx":
            exported = export_onnx(options.folder, options.output, **given)
            return Outcome(exported.to_dict(), str(exported))
        for name, default in _OF_ONNX.items():
            if given[name] != default:
                raise CompactConfigError(f"`--{name}` is for `--format onnx`.")
        dense = export_dense(options.folder, options.output)
    return Outcome(dense.to_dict(), str(dense))
