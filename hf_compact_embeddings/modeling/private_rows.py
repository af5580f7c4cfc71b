"""Rows that a structure stores exactly beside its codes: special tokens, frequent tokens, and rows added later."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .codes import is_traced, pack_codes, unpack_codes
from .configuration import STORAGE_DTYPES, StructureConfig

_PRIVATE_ID_BITS = 32


class PrivateRows(nn.Module):
    """The part of a structure that holds rows exactly; it is built with none until they are allocated."""

    config: StructureConfig
    embedding_dim: int
    private_vectors: nn.Parameter | None
    private_ids: Tensor | None

    def private_id_list(self) -> Tensor:
        """Return the sorted ids (m,) of the rows stored exactly, as int64."""
        if self.private_ids is None:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        if is_traced():
            return unpack_codes(self.private_ids, 1, _PRIVATE_ID_BITS).squeeze(-1)
        # The same without arithmetic, for little-endian machines, which are all that torch runs on.
        return self.private_ids.view(torch.int32).squeeze(-1).long()

    @torch.no_grad()
    def set_private_rows(self, ids: Tensor, vectors: Tensor) -> None:
        """Store the rows `vectors` (m, D) exactly under the sorted, unique `ids` (m,)."""
        self.allocate_private_rows(ids.numel(), like=vectors)
        if self.private_ids is not None and self.private_vectors is not None:
            self.private_ids.copy_(pack_codes(ids.unsqueeze(-1), _PRIVATE_ID_BITS))
            self.private_vectors.copy_(vectors)

    def with_private_rows(self, vectors: Tensor, ids: Tensor, exact: Tensor) -> Tensor:
        """Put the exact rows (m, D) over the coded vectors (..., D) of the ids that have one."""
        private_ids = self.private_id_list()
        # Searching the short sorted list needs no slot table with an entry for each token. Ids that are a view of
        # others may not be contiguous, of which torch would warn.
        slot = torch.searchsorted(private_ids, ids.contiguous()).clamp_(max=private_ids.numel() - 1)
        hit = private_ids.take(slot) == ids
        if is_traced() or ids.device.type != "cpu":
            return torch.where(hit.unsqueeze(-1), nn.functional.embedding(slot, exact), vectors)
        # Shapes that depend on the data break a compiled graph and make a GPU wait, but cost a CPU less.
        places = hit.view(-1).nonzero().squeeze(-1)
        if places.numel():
            rows = exact.index_select(0, slot.view(-1).index_select(0, places))
            vectors = vectors.view(-1, self.embedding_dim).index_copy_(0, places, rows).view_as(vectors)
        return vectors

    def allocate_private_rows(self, count: int, like: Tensor | None = None) -> None:
        """Make room for `count` rows of the device and dtype of `like`, without values."""
        device = None if like is None else like.device
        dtype = None if like is None else like.dtype
        vectors, ids = None, None
        if count:
            vectors = nn.Parameter(torch.empty(count, self.embedding_dim, device=device, dtype=dtype))
            ids = torch.empty(count, _PRIVATE_ID_BITS // 8, dtype=torch.uint8, device=device)
        self.register_parameter("private_vectors", vectors)
        self.register_buffer("private_ids", ids)

    def private_or_empty(self) -> Tensor:
        """Return the exact rows (m, D), also where there are none."""
        if self.private_vectors is not None:
            return self.private_vectors
        return torch.empty(0, self.embedding_dim, device=self.device, dtype=self.dtype)

    @property
    def private_bytes(self) -> int:
        """Bytes of the rows stored exactly."""
        stored = STORAGE_DTYPES[self.config.storage_dtype].itemsize
        return self.config.private_rows * (self.embedding_dim * stored + _PRIVATE_ID_BITS // 8)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(tensor for tensor in self.state_dict().values()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that decoded rows have."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())
