"""Modules tied to the table read the table of the model that they are in, also in the replicas of `nn.DataParallel`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..cases import compress_tiny, first_cases
from ..tiny_models import tiny_inputs
from ..tools import outputs_of

replicating = importlib.import_module("torch.nn.parallel.replicate")
CASE = next(case for case in first_cases("project", "dense") if case.method == "subspace")


def replicate_on_cpu(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return two replicas, made by torch's own code; only the copies from device to device are plain copies."""

    def copies(tensors: Sequence[Tensor], devices: Sequence[int], detach: bool = False) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(replicating, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(replicating, "_get_device_index", lambda device, optional: device)
    return replicating.replicate(model, [0, 1])


# A tied head; a head with a bias of its own; a decoder that shares the table; a scaled table.
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5", "gemma3_text", "bart"])
def test_replicas_read_their_own_table(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, compact = compress_tiny(architecture, CASE)
    compact.eval()
    inputs = tiny_inputs(compact)
    expected = outputs_of(compact, inputs)
    start = copy.deepcopy(compact.compact_embedding.state_dict())
    # A second round of replicas, as each step makes them.
    for _ in range(2):
        replicas = replicate_on_cpu(compact, monkeypatch)
        with torch.no_grad():
            for parameter in compact.compact_embedding.parameters():
                parameter.zero_()
            answers = [outputs_of(replica, inputs) for replica in replicas]
        compact.compact_embedding.load_state_dict(start)
        for answer in answers:
            torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    # The model itself is as it was, and its copies are tied to their own tables.
    torch.testing.assert_close(outputs_of(compact, inputs), expected)
    assert not compact._forward_pre_hooks


def test_gradients_of_replicas_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    _, compact = compress_tiny("llama", CASE)
    inputs = tiny_inputs(compact)
    compact(**inputs, labels=inputs["input_ids"]).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in compact.named_parameters()}
    compact.zero_grad()
    for replica in replicate_on_cpu(compact, monkeypatch):
        (replica(**inputs, labels=inputs["input_ids"]).loss / 2).backward()
    for name, parameter in compact.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)
