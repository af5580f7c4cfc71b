"""Rotated embeddings: coordinates in the table's principal axes, coded close to the rate-distortion bound.

Rows are cut into tiers by what their error costs. A tier spends the same bits on the same axes for all its rows: each
row is one ring of bits, from which every axis reads a window (see `trellis_codes`). With clusters, rows of every tier
also name one of a few centres, which are coded like rows, and their own bits are for what lies between: where a row has
a byte or two, the name of its cluster is the best use of the first one.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .codes import bits_for, is_traced, packed_width
from .decoded_scores import decoded_scores
from .errors import CheckpointError, config_error
from .prefix_codes import named_bytes
from .structure import register_structure
from .tiered import TieredConfig, TieredEmbedding, pack_tags, stored_table, unpack_tags
from .trellis_codes import MAX_BITS, MAX_WINDOW_BITS, MIN_WINDOW_BITS, decode, window_bits_for


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedConfig(TieredConfig):
    """Configuration of rotated embeddings. One of `max_bytes` and `bits_per_weight` gives the size; none: 1 bit.

    Attributes:
        max_bytes: the bytes to spend; rows kept exactly come on top.
        bits_per_weight: the same, as bits for each value of the table.
        tiers: at most this many groups of rows with rates of their own.
        clusters: at most this many centres, of which each row names one; 0: none. The fit takes no more than a quarter
            of the rows, and drops those that are not worth their bytes.
        max_window_bits: log2 of the states of the trellis; each more costs twice the time to fit.
        basis: "coded" stores the axes as trellis codes too, and trains only their lengths; "float16" stores
            them as they are, and trains them.
        frequency_power: errors weigh (count + 1)^power when bits are given out, where counts are known; None: 0.3,
            or 0.75 where an output head scores through the table.
        axis_power: the same for axes, means and gains; None: 0.75, or 1.0 with such a head.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives
            over `texts`: the scores of a head that is tied to the table, or else the states.
        tier_rows: rows in each tier. Set by the fit, as is all that follows.
        tier_tag_lengths: bits of the name of each tier; empty: all have the same.
        tier_bytes: bytes of a row in each tier.
        rank: axes that have bits in some tier.
        basis_bytes: bytes of all coded axes.
        cluster_bytes: bytes of a centre.
        cluster_tag_lengths: how many clusters have a name of 1 bit, of 2 bits and so on; empty: all have the same bits.
        cluster_tag_bytes: bytes of the names of all rows' clusters, where names differ in length.
    """

    method: ClassVar[str] = "rotated"

    clusters: int = 0
    max_window_bits: int = 12
    tier_bytes: tuple[int, ...] = ()
    cluster_bytes: int = 0
    cluster_tag_lengths: tuple[int, ...] = ()
    cluster_tag_bytes: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        self.require_integer("max_window_bits", MIN_WINDOW_BITS, MAX_WINDOW_BITS)
        self.require_integer("clusters", 0, 1 << 16)
        if not all(isinstance(count, int) and 0 <= count <= self.clusters for count in self.cluster_tag_lengths):
            raise config_error("cluster_tag_lengths", self.cluster_tag_lengths, "it must be numbers of clusters")
        self.require_names("cluster_tag_lengths", self.cluster_name_lengths(), self.clusters)

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier."""
        return self.tier_bytes

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Lay out a random start where no fit has set the shapes: one tier, a bit for each of the first axes."""
        config = super().resolved(num_embeddings, embedding_dim)
        if self.rank is not None:
            return config
        assert config.coded_rows is not None
        clusters = config.most_clusters(config.coded_rows)
        budget = self.budget(config.coded_rows, embedding_dim) - config.tag_bytes(clusters, config.coded_rows)
        row_bytes = max(1, min(embedding_dim, budget * 8 // (config.coded_rows + clusters)) // 8)
        rank = row_bytes * 8
        if rank > embedding_dim:
            rank, row_bytes = 0, 0
        return dataclasses.replace(
            config,
            tier_rows=(config.coded_rows,),
            tier_bytes=(row_bytes,),
            rank=rank,
            basis_bytes=self.random_basis_bytes(rank, embedding_dim),
            clusters=clusters,
            cluster_bytes=row_bytes if clusters else 0,
            cluster_tag_bytes=0,
        )

    def cluster_name_lengths(self) -> tuple[int, ...]:
        """Return the bits of each cluster's name."""
        counts = enumerate(self.cluster_tag_lengths, start=1)
        return tuple(length for length, count in counts for _ in range(count))

    def most_clusters(self, rows: int) -> int:
        """Return how many clusters a table of so many rows has: fewer rows have fewer to share."""
        count = min(self.clusters, rows // 4)
        return count if count > 1 else 0

    @staticmethod
    def tag_bytes(clusters: int, rows: int) -> int:
        """Return the bytes of the names of all rows' clusters, where all names are of one length."""
        return packed_width(rows, bits_for(clusters)) if clusters else 0

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Spend the budget, with many tiers or few, and with clusters."""
        enough = max_bytes * 8 >= num_embeddings + 64 * embedding_dim
        found = [cls(max_bytes=max_bytes, tiers=tiers) for tiers in (4, 2)] if enough else []
        # A centre takes as many bytes as the names of some dozen rows. Both must leave something for the rows.
        clusters = min(1024, 1 << (num_embeddings // 48).bit_length() >> 1)
        if enough and clusters >= 16 and max_bytes >= 2 * cls.tag_bytes(clusters, num_embeddings):
            found.append(cls(max_bytes=max_bytes, clusters=clusters))
        return found


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where things are, read from the stored bit tables.

    Attributes:
        axes: of each tier, the axes with bits, in the order of the code.
        bits: and how many.
    """

    axes: tuple[Tensor, ...]
    bits: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, table: Tensor) -> Self:
        """Read a table of bits (T, r)."""
        axes, bits = [], []
        for row in table.tolist():
            order = sorted((axis for axis, count in enumerate(row) if count), key=lambda axis: -row[axis])
            axes.append(torch.tensor(order, dtype=torch.int64, device=table.device))
            bits.append(tuple(row[axis] for axis in order))
        return cls(tuple(axes), tuple(bits))


@register_structure(RotatedConfig)
class RotatedEmbedding(TieredEmbedding):
    """Row = coordinates · basis + mean of the tier; coordinates = trellis values · gains of the tier + a centre."""

    config: RotatedConfig
    axis_bits: Tensor
    cluster_tags: Tensor | None
    cluster_codes: Tensor | None
    cluster_bits: Tensor | None
    cluster_gains: nn.Parameter | None

    def __init__(
        self,
        config: RotatedConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate bit tables and gains beside what tiers need."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        assert self.config.rank is not None
        shape = (len(self.config.tier_rows), self.config.rank)
        self.register_buffer("axis_bits", stored_table(True, *shape))
        self.gains = nn.Parameter(torch.empty(shape))
        clusters, rank = self.config.clusters, self.config.rank
        tags = self.config.cluster_tag_bytes or self.config.tag_bytes(clusters, self.coded_rows)
        self.register_buffer("cluster_tags", stored_table(clusters > 0, tags))
        self.register_buffer("cluster_codes", stored_table(clusters > 0, clusters, self.config.cluster_bytes))
        self.register_buffer("cluster_bits", stored_table(clusters > 0, rank))
        self.register_parameter("cluster_gains", nn.Parameter(torch.empty(rank)) if clusters else None)

    # Reading.

    def layout(self) -> _Layout:
        """Return where the bits of each tier are."""
        return self.known("layout", (self.axis_bits,), self._read_layout)

    def read_tables(self) -> None:
        """Read the layout and the clusters too."""
        super().read_tables()
        self.layout()
        if self.config.clusters and self._centre_bytes() == self.config.cluster_bytes:
            self.cluster_of_rows()
            self.centres()

    def _read_layout(self) -> _Layout:
        return _Layout.of(self.axis_bits)

    def cluster_of_rows(self) -> Tensor:
        """Return the cluster of each row (V,), int64."""
        return self.known("clusters", (self.cluster_tags,), self._read_clusters)

    def _read_clusters(self) -> Tensor:
        assert self.cluster_tags is not None
        return unpack_tags(self.cluster_tags, self.coded_rows, self.config.clusters, self.config.cluster_name_lengths())

    def centres(self) -> Tensor:
        """Return the coordinates (K, r) of the centres."""
        assert self.cluster_gains is not None
        values = self.known("centres", (self.cluster_codes, self.cluster_bits), self._read_centres)
        return values.to(self.cluster_gains) * self.cluster_gains

    def _read_centres(self) -> Tensor:
        """Decode the centres (K, r), before their gains."""
        assert self.cluster_codes is not None and self.cluster_bits is not None
        values = torch.zeros(self.config.clusters, len(self.cluster_bits), device=self.codes.device)
        layout = _Layout.of(self.cluster_bits.unsqueeze(0))
        axes, bits = layout.axes[0], layout.bits[0]
        if bits:
            window = window_bits_for(sum(bits), self.config.max_window_bits)
            values[:, axes] = decode(self.cluster_codes, bits, window)
        return values

    def _centre_bytes(self) -> int:
        """Return the bytes of a centre by its bits."""
        return 0 if self.cluster_bits is None else int(self.cluster_bits.sum()) // 8

    def _coordinates(self, ids: Tensor) -> Tensor:
        """Return the coordinates (n, r) of the rows `ids` (n,)."""
        layout, rows_at = self.layout(), self.places()
        tiers, slots = rows_at.tiers[ids], rows_at.slots[ids]
        points = self.gains.new_zeros(len(ids), self.gains.shape[1])
        for tier, bits in enumerate(layout.bits):
            if not bits or not self.config.tier_rows[tier]:
                continue
            window = window_bits_for(sum(bits), self.config.max_window_bits)
            gains = self.gains[tier, layout.axes[tier]]
            if is_traced():
                rows = self.tier_codes(tier)[slots.clamp(max=self.config.tier_rows[tier] - 1)]
                read = decode(rows, bits, window).to(gains.dtype) * gains
                mine = (tiers == tier).unsqueeze(-1)
                points = points + torch.where(
                    mine, torch.zeros_like(points).index_copy(1, layout.axes[tier], read), 0.0
                )
                continue
            places = (tiers == tier).nonzero().squeeze(-1)
            read = decode(self.tier_codes(tier)[slots[places]], bits, window).to(gains.dtype) * gains
            spread_out = points.new_zeros(len(places), points.shape[1]).index_copy(1, layout.axes[tier], read)
            points = points.index_copy(0, places, spread_out)
        return points + self.centres()[self.cluster_of_rows()[ids]] if self.config.clusters else points

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Rotate the coordinates back."""
        flat = ids.reshape(-1)
        vectors = self._coordinates(flat) @ self.axes() + self.means[self.places().tiers[flat]]
        return vectors.view(*ids.shape, self.embedding_dim)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score as (hidden · basisᵀ) · coordinatesᵀ, some rows at a time, and the means once a tier."""
        hidden = hidden.float()
        tiers = self.places().tiers

        def coordinates(start: int, stop: int) -> Tensor:
            return self._coordinates(torch.arange(start, stop, device=hidden.device))

        offset = (hidden @ self.means.float().T)[:, tiers]
        if not self.config.rank:
            return offset
        return decoded_scores(hidden @ self.axes().float().T, self.coded_rows, coordinates) + offset

    # Writing.

    @torch.no_grad()
    def set_codes(self, tags: Tensor, codes: list[Tensor], axis_bits: Tensor) -> None:
        """Store the tier of each row (V,), the packed rows (n, bytes) of each tier, and its bits (T, r)."""
        self.axis_bits.copy_(axis_bits)
        self.set_row_codes(tags, codes)

    @torch.no_grad()
    def set_clusters(self, of_rows: Tensor, codes: Tensor, bits: Tensor, gains: Tensor) -> None:
        """Store the cluster of each row (V,), and the centres: packed (K, bytes), bits (r,) and gains (r,)."""
        assert self.cluster_tags is not None and self.cluster_codes is not None
        assert self.cluster_bits is not None and self.cluster_gains is not None
        self.cluster_tags.copy_(self._packed_clusters(of_rows))
        self.cluster_codes.copy_(codes)
        self.cluster_bits.copy_(bits)
        self.cluster_gains.copy_(gains)

    def _packed_clusters(self, of_rows: Tensor) -> Tensor:
        return pack_tags(of_rows.long(), self.config.clusters, self.config.cluster_name_lengths())

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the names of the last rows' clusters too."""
        if self.cluster_tags is not None:
            self.cluster_tags = self._packed_clusters(self.cluster_of_rows()[:count])
            if self.config.cluster_tag_lengths:
                self.config = dataclasses.replace(self.config, cluster_tag_bytes=len(self.cluster_tags))
        super().keep_rows(count)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes at random: one bit an axis, on random axes."""
        super().reset_parameters()
        self.axis_bits.fill_(1)
        self.gains.fill_(1.0)
        if self.cluster_tags is None or self.cluster_codes is None:
            return
        assert self.cluster_bits is not None and self.cluster_gains is not None
        # Row and centre together are as long as a row without one.
        self.gains.fill_(0.5**0.5)
        self.cluster_gains.fill_(0.5**0.5)
        self.cluster_bits.fill_(1)
        self.cluster_codes.random_(0, 256)
        drawn = torch.randint(self.config.clusters, (self.coded_rows,), device=self.codes.device)
        self.cluster_tags.copy_(self._packed_clusters(drawn))

    def check_values(self) -> None:
        """Raise if bit tables or tags do not fit to the codes."""
        super().check_values()
        bits = self.layout().bits
        if tuple(sum(row) // 8 for row in bits) != self.config.tier_bytes or int(self.axis_bits.max()) > MAX_BITS:
            raise CheckpointError(f"`axis_bits` does not add up to the `tier_bytes` {self.config.tier_bytes}.")
        if self.cluster_bits is None:
            return
        if self._centre_bytes() != self.config.cluster_bytes or bool((self.cluster_bits > MAX_BITS).any()):
            raise CheckpointError(f"`cluster_bits` does not add up to the `cluster_bytes` {self.config.cluster_bytes}.")
        if int(self.cluster_of_rows().max()) >= self.config.clusters:
            raise CheckpointError(f"`cluster_tags` names clusters beyond the {self.config.clusters} that there are.")
        if lengths := self.config.cluster_name_lengths():
            named = torch.bincount(self.cluster_of_rows(), minlength=self.config.clusters).tolist()
            if named_bytes(named, lengths) != self.config.cluster_tag_bytes:
                raise CheckpointError("`cluster_tags` ends before or after the name of the last row's cluster.")
