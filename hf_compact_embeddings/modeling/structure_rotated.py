"""Rotated embeddings: coordinates in the table's principal axes, as trellis-coded quantisation close to the bound.

Rows are cut into tiers by what their error costs. A tier spends the same bits on the same axes for all its rows: each
row is one ring of bits, from which every axis reads a window (see `trellis_codes`). With clusters, rows of every tier
also say which of a few centroids they belong to, which are coded like rows, and their own bits are for what is left.

| tensor | shape | type | meaning |
|---|---|---|---|
| `codes` | (sum over tiers of rows · `tier_bytes`,) | uint8 | the rows' rings of bits, tier by tier |
| `axis_bits` | (T, r) | uint8 | bits of each axis in each tier, 0 to 6; 0 leaves the axis at its mean |
| `gains` | (T, r) | float | what the values of each axis are multiplied by, in each tier |
| `cluster_index` | (bytes,) | uint8 | the cluster of each row, Huffman-coded; only with clusters, as what follows |
| `cluster_codes` | (K, `cluster_bytes`) | uint8 | the centroids' rings of bits |
| `cluster_bits` | (r,) | uint8 | bits of each axis in the centroids |
| `cluster_gains` | (r,) | float | what the centroids' values are multiplied by |
| `tier_index`, `means`, `basis…` | | | see `tiered` |

T are the tiers, r is the rank, K the clusters. A ring holds the axes that have bits, those of most bits first, else by
rising number. A row is (values · gains of its tier + centroid) · basis + mean of its tier.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .codes import decoded_scores, is_traced
from .errors import CheckpointError, config_error
from .huffman import MAX_LENGTH, coded_bytes, pack_symbols, unpack_symbols
from .options import integer, integers
from .structure import register_structure
from .tiered import TieredConfig, TieredEmbedding, TieredLayout, check_code, random_basis_bytes, stored_bytes
from .trellis_codes import MAX_BITS, MAX_WINDOW_BITS, MIN_WINDOW_BITS, decode, window_bits_for

_MAX_CLUSTERS = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedConfig(TieredConfig):
    """Options of rotated embeddings. A budget gives the size; none: 1 bit a value.

    Attributes:
        tiers: at most this many groups of rows with rates of their own.
        clusters: at most this many centroids, one of which each row belongs to; 0: none. The fit takes no more than a
            quarter of the rows, and drops those that are not worth their bytes.
        max_window_bits: log2 of the states of the trellis; each more costs twice the time to fit.
        basis: "coded" stores the axes as trellis codes too, and trains only their lengths; "float16" stores
            them as they are, and trains them.
        frequency_power: errors weigh (count + 1)^power when bits are given out, where counts are known; None: 0.3,
            or 0.85 where an output head scores through the table.
        axis_power: the same for axes, means and gains; None: 0.75, or 1.0 with such a head.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives:
            the scores of a head that is tied to the table, or else the states. "auto" is that, where there is a
            tokenizer, so that it can be found: in texts, or in texts that are made.
    """

    method: ClassVar[str] = "rotated"

    clusters: int = integer(0, 0, _MAX_CLUSTERS)
    max_window_bits: int = integer(12, MIN_WINDOW_BITS, MAX_WINDOW_BITS)

    def most_clusters(self, rows: int) -> int:
        """Return how many clusters a table of so many rows has at the most: fewer rows have fewer to share."""
        count = min(self.clusters, rows // 4)
        return count if count > 1 else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedLayout(TieredLayout):
    """Sizes of rotated embeddings.

    Attributes:
        tier_bytes: bytes of a row in each tier.
        tier_window_bits: bits that each axis sees of the ring, in each tier; 0 where rows have no bits.
        clusters: K, the centroids.
        cluster_bytes: bytes of a centroid.
        cluster_window_bits: bits that each axis sees of a centroid's ring.
        cluster_length_counts: how many clusters have a codeword of 1 bit, of 2 bits and so on. The clusters are in the
            order of their codewords.
        cluster_index_bytes: bytes of `cluster_index`.
    """

    tier_bytes: tuple[int, ...] = integers()
    tier_window_bits: tuple[int, ...] = integers(0, MAX_WINDOW_BITS)
    clusters: int = integer(0, 0, _MAX_CLUSTERS)
    cluster_bytes: int = integer(0)
    cluster_window_bits: int = integer(0, 0, MAX_WINDOW_BITS)
    cluster_length_counts: tuple[int, ...] = integers(0, _MAX_CLUSTERS, default=())
    cluster_index_bytes: int = integer(0)

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier."""
        return self.tier_bytes

    def cluster_code_lengths(self) -> tuple[int, ...]:
        """Return the bits of each cluster's codeword."""
        counts = enumerate(self.cluster_length_counts, start=1)
        return tuple(length for length, count in counts for _ in range(count))


class RingOrder(NamedTuple):
    """The axes that a ring of bits holds, in its order, and how many bits each has."""

    axes: Tensor
    bits: tuple[int, ...]

    @classmethod
    def of(cls, bits: Tensor) -> RingOrder:
        """Read the bits of all axes (r,): most bits first, so that the windows of the first axes are their own."""
        counts = bits.tolist()
        order = sorted((axis for axis, count in enumerate(counts) if count), key=lambda axis: -counts[axis])
        axes = torch.tensor(order, dtype=torch.int64, device=bits.device)
        return cls(axes, tuple(counts[axis] for axis in order))


@register_structure
class RotatedEmbedding(TieredEmbedding):
    """Row = coordinates · basis + mean of the tier; coordinates = trellis values · gains of the tier + a centroid."""

    options_class = RotatedConfig
    layout_class = RotatedLayout

    options: RotatedConfig
    layout: RotatedLayout
    axis_bits: Tensor
    cluster_index: Tensor
    cluster_codes: Tensor
    cluster_bits: Tensor
    cluster_gains: nn.Parameter

    def allocate(self) -> None:
        """Allocate bit tables, gains and centroids beside what tiers need."""
        super().allocate()
        layout = self.layout
        tiers, rank, clusters = len(layout.tier_rows), layout.rank, layout.clusters
        self.register_buffer("axis_bits", stored_bytes(True, tiers, rank))
        self.gains = nn.Parameter(torch.empty(tiers, rank))
        self.register_buffer("cluster_index", stored_bytes(clusters > 0, layout.cluster_index_bytes))
        self.register_buffer("cluster_codes", stored_bytes(clusters > 0, clusters, layout.cluster_bytes))
        self.register_buffer("cluster_bits", stored_bytes(clusters > 0, rank))
        self.register_parameter("cluster_gains", nn.Parameter(torch.empty(rank)) if clusters else None)

    @classmethod
    def layout_for(cls, options: RotatedConfig, rows: int, width: int, max_bytes: int | None = None) -> RotatedLayout:
        """Lay out a random start: one tier, a bit for each of the first axes, all clusters of about one size."""
        budget = options.default_budget(rows, width) if max_bytes is None else max_bytes
        clusters = options.most_clusters(rows)
        length_counts, index_bytes = _even_clusters(clusters, rows)
        row_bytes = max(1, min(width, (budget - index_bytes) * 8 // (rows + clusters)) // 8)
        rank = row_bytes * 8
        if rank > width:
            rank, row_bytes = 0, 0
        window = window_bits_for(rank, options.max_window_bits) if rank else 0
        return RotatedLayout(
            coded_rows=rows,
            tier_rows=(rows,),
            tier_code_lengths=(),
            tier_bytes=(row_bytes,),
            tier_window_bits=(window,),
            rank=rank,
            basis_bytes=random_basis_bytes(options, rank, width),
            clusters=clusters,
            cluster_bytes=row_bytes if clusters else 0,
            cluster_window_bits=window if clusters else 0,
            cluster_length_counts=length_counts,
            cluster_index_bytes=index_bytes,
        )

    def check_layout(self) -> None:
        """Raise if windows do not fit to their rings, or the clusters' codewords cannot be told apart."""
        super().check_layout()
        layout = self.layout
        rings = [*zip(layout.tier_bytes, layout.tier_window_bits, strict=False)]
        if len(layout.tier_window_bits) != len(layout.tier_bytes) or not all(map(_is_window_of, rings)):
            allowed = f"it must be {MIN_WINDOW_BITS} to the bits of a row, or 0 where rows have no bytes"
            raise config_error("tier_window_bits", layout.tier_window_bits, allowed)
        if sum(layout.cluster_length_counts) != layout.clusters or len(layout.cluster_length_counts) > MAX_LENGTH:
            allowed = f"it must add up to the {layout.clusters:,} `clusters`"
            raise config_error("cluster_length_counts", layout.cluster_length_counts, allowed)
        check_code("cluster_length_counts", layout.cluster_code_lengths(), layout.clusters)
        if layout.clusters and not _is_window_of((layout.cluster_bytes, layout.cluster_window_bits)):
            allowed = f"a centroid has {layout.cluster_bytes} bytes"
            raise config_error("cluster_window_bits", layout.cluster_window_bits, allowed)

    # Reading.

    def ring_orders(self) -> tuple[RingOrder, ...]:
        """Return what the ring of each tier holds."""
        return self.known("rings", (self.axis_bits,), lambda: tuple(map(RingOrder.of, self.axis_bits)))

    def read_tables(self) -> None:
        """Read rings and clusters too."""
        super().read_tables()
        self.ring_orders()
        if self.layout.clusters and int(self.cluster_bits.sum()) == 8 * self.layout.cluster_bytes:
            self.cluster_of_rows()
            self.centroids()

    def known_clusters(self) -> Tensor:
        """Return the cluster of each row (V,) as the 16 bits of int16."""
        index, layout = self.cluster_index, self.layout

        def read() -> Tensor:
            return unpack_symbols(index, layout.coded_rows, layout.cluster_code_lengths()).short()

        return self.known("clusters", (index,), read)

    def cluster_of_rows(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """Return the clusters of rows (n,), of all if none are given, int64."""
        return self.known_clusters()[ids].long() & 0xFFFF

    def centroids(self) -> Tensor:
        """Return the coordinates (K, r) of the centroids."""
        return self.centroid_values().to(self.cluster_gains) * self.cluster_gains

    def centroid_values(self) -> Tensor:
        """Return the coordinates (K, r) of the centroids before their gains."""
        return self.known("centroids", (self.cluster_codes, self.cluster_bits), self._read_centroids)

    def _read_centroids(self) -> Tensor:
        """Decode the centroids (K, r), before their gains."""
        values = torch.zeros(self.layout.clusters, len(self.cluster_bits), device=self.codes.device)
        axes, bits = RingOrder.of(self.cluster_bits)
        if bits:
            values[:, axes] = decode(self.cluster_codes, bits, self.layout.cluster_window_bits)
        return values

    def _coordinates(self, ids: Tensor) -> Tensor:
        """Return the coordinates (n, r) of the rows `ids` (n,)."""
        layout, (tiers, slots) = self.layout, self.positions().of(ids)
        points = self.gains.new_zeros(ids.shape[0], self.gains.shape[1])
        for tier, (axes, bits) in enumerate(self.ring_orders()):
            if not bits or not layout.tier_rows[tier]:
                continue
            window, gains = layout.tier_window_bits[tier], self.gains[tier, axes]
            if is_traced():
                # Static shapes: all rows are read as if they were of this tier, and the others' values dropped.
                rows = self.tier_codes(tier)[slots.clamp(max=layout.tier_rows[tier] - 1)]
                read = decode(rows, bits, window).to(gains.dtype) * gains
                mine = (tiers == tier).unsqueeze(-1)
                points = points + torch.where(mine, torch.zeros_like(points).index_copy(1, axes, read), 0.0)
                continue
            mine = (tiers == tier).nonzero().squeeze(-1)
            read = decode(self.tier_codes(tier)[slots[mine]], bits, window).to(gains.dtype) * gains
            points = points.index_put((mine.unsqueeze(1), axes), read)
        return points + self.centroids()[self.cluster_of_rows(ids)] if layout.clusters else points

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Rotate the coordinates back."""
        flat = ids.reshape(-1)
        vectors = self._coordinates(flat) @ self.axes() + self.means[self.positions().of(flat)[0]]
        return vectors.view(*ids.shape, self.embedding_dim)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score as (hidden · basisᵀ) · coordinatesᵀ, some rows at a time, and the means once a tier."""
        hidden = hidden.float()
        tiers = self.positions().of()[0]

        def coordinates(start: int, stop: int) -> Tensor:
            return self._coordinates(torch.arange(start, stop, device=hidden.device))

        offset = (hidden @ self.means.float().T)[:, tiers]
        if not self.layout.rank:
            return offset
        return decoded_scores(hidden @ self.axes().float().T, self.layout.coded_rows, coordinates) + offset

    # Writing.

    @torch.no_grad()
    def set_codes(self, tiers: Tensor, codes: list[Tensor], axis_bits: Tensor) -> None:
        """Store the tier of each row (V,), the packed rows (n, bytes) of each tier, and its bits (T, r)."""
        self.axis_bits.copy_(axis_bits)
        self.set_row_codes(tiers, codes)

    @torch.no_grad()
    def set_clusters(self, of_rows: Tensor, codes: Tensor, bits: Tensor, gains: Tensor) -> None:
        """Store the cluster of each row (V,), and the centroids: packed (K, bytes), bits (r,) and gains (r,)."""
        self.cluster_index.copy_(self._packed_clusters(of_rows))
        self.cluster_codes.copy_(codes)
        self.cluster_bits.copy_(bits)
        self.cluster_gains.copy_(gains)

    def _packed_clusters(self, of_rows: Tensor) -> Tensor:
        return pack_symbols(of_rows.long(), self.layout.cluster_code_lengths())

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the clusters of the last rows too."""
        if self.layout.clusters:
            self.cluster_index = self._packed_clusters(self.cluster_of_rows()[:count])
            self.layout = dataclasses.replace(self.layout, cluster_index_bytes=len(self.cluster_index))
        super().keep_rows(count)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes at random: one bit an axis, on random axes."""
        super().reset_parameters()
        self.axis_bits.fill_(1)
        self.gains.fill_(1.0)
        if not self.layout.clusters:
            return
        # Row and centroid together are as long as a row without one.
        self.gains.fill_(0.5**0.5)
        self.cluster_gains.fill_(0.5**0.5)
        self.cluster_bits.fill_(1)
        self.cluster_codes.random_(0, 256)
        even = torch.arange(self.layout.coded_rows, device=self.codes.device) % self.layout.clusters
        self.cluster_index.copy_(self._packed_clusters(even[torch.randperm(len(even), device=even.device)]))

    def check_values(self) -> None:
        """Raise if bit tables or clusters do not fit to the codes."""
        super().check_values()
        layout = self.layout
        tables = [("axis_bits", row, size) for row, size in zip(self.axis_bits, layout.tier_bytes, strict=True)]
        if layout.clusters:
            tables.append(("cluster_bits", self.cluster_bits, layout.cluster_bytes))
        for name, bits, size in tables:
            if int(bits.sum()) != 8 * size or (layout.rank and int(bits.max()) > MAX_BITS):
                field = "cluster_bytes" if name == "cluster_bits" else "tier_bytes"
                raise CheckpointError(f"`{name}` is at most {MAX_BITS} and adds up to `{field}`, {size}: it does not.")
        if layout.clusters:
            sizes = torch.bincount(self.cluster_of_rows(), minlength=layout.clusters).tolist()
            if coded_bytes(sizes, layout.cluster_code_lengths()) != layout.cluster_index_bytes:
                raise CheckpointError("`cluster_index` ends before or after the codeword of the last row's cluster.")


def length_counts_of(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many codewords have 1 bit, 2 bits and so on."""
    return tuple(lengths.count(length) for length in range(1, max(lengths) + 1)) if lengths else ()


def _even_clusters(clusters: int, rows: int) -> tuple[tuple[int, ...], int]:
    """Return the counts of codeword lengths and the bytes of the index of clusters that share the rows evenly."""
    if not clusters:
        return (), 0
    # With two lengths that differ by one bit, the shorter codewords of what is no power of two.
    longer = (clusters - 1).bit_length()
    short = (1 << longer) - clusters
    lengths = (longer - 1,) * short + (longer,) * (clusters - short)
    sizes = [rows // clusters + (cluster < rows % clusters) for cluster in range(clusters)]
    return length_counts_of(lengths), coded_bytes(sizes, lengths)


def _is_window_of(ring: tuple[int, int]) -> bool:
    """Whether a window fits to the bytes of a ring."""
    size, window = ring
    return MIN_WINDOW_BITS <= window <= 8 * size if size else window == 0
