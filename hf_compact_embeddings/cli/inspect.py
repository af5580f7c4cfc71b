"""Report what a compact checkpoint takes, and how faithful it is to the dense model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import changed_code, folder_bytes, load_compact, load_dense, load_tokenizer
from ..evaluation.page import report_page
from ..evaluation.report import inspect
from .arguments import add_language_argument, add_runtime_argument, page_path
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="Hub id or folder of a compact model")
    parser.add_argument("--against", metavar="MODEL", help="Hub id or folder of the dense model, for the fidelity")
    add_language_argument(parser)
    add_runtime_argument(parser)
    parser.add_argument("--html", metavar="FILE", help="also write the report as a page for a browser, with pictures")


def run(options: argparse.Namespace) -> Outcome:
    """Load and report."""
    page = None if options.html is None else page_path(options.html)
    dense = None if options.against is None else load_dense(options.against)
    compact = load_compact(options.model, compact_runtime=options.runtime)
    # Only beside the dense table are there errors, of frequent tokens and of rare ones.
    tokenizer = None if dense is None else load_tokenizer(options.model)
    if dense is not None and tokenizer is None:
        tokenizer = load_tokenizer(options.against)
    report = inspect(compact, against=dense, tokenizer=tokenizer, languages=options.languages)
    if page is not None:
        page.write_text(report_page(report, Path(options.model).name), encoding="utf-8")
    changed, more = changed_code(options.model), {}
    if Path(options.model).is_dir():
        more = {"folder_bytes": folder_bytes(options.model)}
    size = "".join(f"\n{'whole folder':<24}{count:,} bytes" for count in more.values())
    verdict = f"CHANGED since saving: {', '.join(changed)}" if changed else "as saved"
    return Outcome(report.to_dict() | {"changed_code": changed, **more}, f"{report}{size}\n{'code files':<24}{verdict}")
