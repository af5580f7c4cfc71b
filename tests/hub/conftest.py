"""A Hub for each test, and the client in this process pointed at it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session, constants, hf_api

from .server import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub; the test fails if the server itself broke."""
    with HubServer() as server:
        yield server
    assert not server.crashes, f"the test Hub itself failed: {server.crashes!r}"


@pytest.fixture
def api(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """The client in this process: at the test Hub, with its write token and a cache of its own."""
    monkeypatch.setenv("HF_TOKEN", hub.write_token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)  # behind the functions of the package
    if "transformers.utils.hub" in sys.modules:
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it is made once, for the endpoint of then
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    close_session()  # a kept client would hold connections to the Hub of an earlier test
    yield HfApi(endpoint=hub.endpoint, token=hub.write_token)
    close_session()


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not sleep before it tries again."""
    sleep = time.sleep

    def only_elsewhere(seconds: float) -> None:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("huggingface_hub"):
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", only_elsewhere)
