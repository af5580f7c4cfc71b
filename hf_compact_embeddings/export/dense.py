"""The native model again, in a folder that anything reads, with the table as large as it ever was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..checkpoints import copy_sentence_files, load_compact, load_tokenizer, require_free_folder
from ..compression import decompress
from ..drafts import whole_folder


@dataclasses.dataclass(frozen=True)
class DenseExport:
    """What was written.

    Attributes:
        folder: where to.
        files: bytes of each file with weights, by its name.
        model: the class of the model.
    """

    folder: str
    files: dict[str, int]
    model: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [(name, f"{size / 1e6:,.2f} MB") for name, size in self.files.items()]
        lines += [("model", self.model), ("written to", self.folder)]
        return "\n".join(f"{name:<28}{value}" for name, value in lines)


def export_dense(source: str | Path, folder: str | Path) -> DenseExport:
    """Write the native model of a compact Hub id or folder, with all decoded rows, its tokenizer and the like.

    The rows keep what compressing them has cost: this is for libraries that read no codes, not a way back.
    """
    target = require_free_folder(folder)
    dense, tokenizer = decompress(load_compact(source)), load_tokenizer(source)
    with whole_folder(target) as draft:
        dense.save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        copy_sentence_files(source, draft)
    files = {file.name: file.stat().st_size for file in sorted(target.glob("*.safetensors"))}
    return DenseExport(str(target), files, type(dense).__name__)
