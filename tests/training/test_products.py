"""Products in bfloat16 only where the clock says so, and for no longer than they are asked for."""

from __future__ import annotations

import pytest
import torch

from hf_compact_embeddings.training import products
from hf_compact_embeddings.training.products import fast_products


@pytest.mark.parametrize(("seconds", "inside"), [([3.0, 1.0], "medium"), ([1.2, 1.0], "highest")])
def test_the_clock_decides_and_all_is_as_before_afterwards(
    seconds: list[float], inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(seconds)
    monkeypatch.setattr(products, "_seconds", lambda: next(times))
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(KeyError), fast_products(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == inside
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_seconds", lambda: pytest.fail("nothing is timed"))
    with fast_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest"
