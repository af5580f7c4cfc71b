"""How an exported graph reads a table: the same rows from the same bytes, with operators that every runtime has.

What the package reads once and keeps, as the tier of each row, stays as small in the graph as it is in a checkpoint.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor, nn

from ..modeling.structure import CompactEmbedding
from ..modeling.trellis_codes import reproduction_values


class CodedRows(nn.Module):
    """Decodes coded rows as the structure itself does. A method whose own code makes a poor graph has another."""

    def __init__(self, structure: CompactEmbedding) -> None:
        """Read this structure's tensors."""
        super().__init__()
        self.structure = structure

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (n, D) of the ids (n,), all below `layout.coded_rows`."""
        return self.structure.coded_vectors(ids)


def coded_rows_of(structure: CompactEmbedding) -> nn.Module:
    """Return what decodes a structure's rows in a graph: `GraphRows` of `onnx_<method>`, where there is such a file."""
    name = f"{__package__}.onnx_{structure.options.method}"
    if importlib.util.find_spec(name) is None:
        return CodedRows(structure)
    rows: nn.Module = importlib.import_module(name).GraphRows(structure)
    return rows


class SortedIds(nn.Module):
    """Finds ids in a short sorted list, a step for each binary digit of its length: graphs have no such search."""

    ids: Tensor

    def __init__(self, ids: Tensor) -> None:
        """Search the sorted, unique ids (m,), of which there is at least one."""
        super().__init__()
        self.steps = [1 << bit for bit in reversed(range(len(ids).bit_length()))]
        # Beyond the end lies what is larger than any id.
        beyond = torch.full((sum(self.steps) + 1 - len(ids),), torch.iinfo(torch.int32).max, dtype=torch.int32)
        self.register_buffer("ids", torch.cat([ids.int(), beyond]))

    def forward(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return for ids (n,) a position in the list (n,), and whether the id is there (n,)."""
        position = torch.zeros_like(wanted)
        for step in self.steps:
            further = position + step
            position = torch.where(self.ids[further].long() <= wanted, further, position)
        return position, self.ids[position].long() == wanted


class Rings(nn.Module):
    """Reads trellis codes of several kinds of rows at once: each kind has its own bits and its own window.

    The windows are those of `trellis_codes.windows_of`. Which bytes an axis sees is worked out from `last_bits` when a
    runtime loads the graph, as nothing there depends on an input.
    """

    last_bits: Tensor
    sizes: Tensor
    masks: Tensor
    first_values: Tensor
    values: Tensor

    def __init__(self, bits: list[Tensor], orders: list[Tensor], sizes: list[int], windows: list[int]) -> None:
        """Read kinds of rings.

        Args:
            bits: of each kind, the bits of the axes (r,), 0 for an axis that the ring does not hold.
            orders: of each kind, the axes in the order of its ring.
            sizes: of each kind, the bytes of a ring.
            windows: of each kind, how many bits an axis sees.
        """
        super().__init__()
        last_bits = torch.zeros(len(bits), len(bits[0]), dtype=torch.int32)
        for kind, (counts, order) in enumerate(zip(bits, orders, strict=True)):
            last_bits[kind, order] = (counts[order].int().cumsum(0) - 1).int()
        lengths = {window: 1 << window for window in sorted(set(windows)) if window}
        firsts = dict(zip(lengths, [0, *torch.tensor(list(lengths.values())).cumsum(0).tolist()], strict=False))
        tables = [reproduction_values(window) for window in lengths]
        self.register_buffer("last_bits", last_bits)
        # A kind without bytes is read as if it had one; its gains are zero.
        self.register_buffer("sizes", torch.tensor([max(1, size) for size in sizes], dtype=torch.int32))
        self.register_buffer("masks", torch.tensor([(1 << window) - 1 for window in windows], dtype=torch.int32))
        self.register_buffer(
            "first_values", torch.tensor([firsts.get(window, 0) for window in windows], dtype=torch.int32)
        )
        self.register_buffer("values", torch.cat(tables) if tables else torch.zeros(1))

    def forward(self, codes: Tensor, starts: Tensor, kinds: Tensor) -> Tensor:
        """Return the values (n, r), of unit gain, of the rings that begin at the bytes `starts` (n,) of `codes`."""
        byte, sizes = self.last_bits >> 3, self.sizes.unsqueeze(1)
        shift = 7 - (self.last_bits & 7)
        starts = starts.unsqueeze(1)
        # Three bytes hold any 17 bits; the ring closes by counting bytes modulo their number.
        window = torch.zeros_like(starts, dtype=torch.int32)
        for back in (2, 1, 0):
            place = starts + ((byte + (2 * sizes - back)) % sizes)[kinds]
            window = window * 256 + _gathered(codes, place).int()
        window = (window >> shift[kinds]) & self.masks[kinds].unsqueeze(1)
        return _gathered(self.values, window + self.first_values[kinds].unsqueeze(1))


def _gathered(table: Tensor, places: Tensor) -> Tensor:
    """Return the entries of a table (N,) at places of any shape: one Gather."""
    return nn.functional.embedding(places, table.unsqueeze(1)).squeeze(-1)
