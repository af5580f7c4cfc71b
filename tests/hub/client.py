"""The real client in a process of its own, pointed at the test Hub."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .server import HubServer

STARTUP = Path(__file__).parent / "startup"
FOREIGN_SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "PYTHONPATH")


def client_environment(
    hub: HubServer, home: Path, offline: bool = False, hidden_packages: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a process whose huggingface_hub talks to this Hub only and caches under `home`.

    Args:
        hub: The Hub to talk to.
        home: The folder for cache and settings; a new one for a client that has nothing yet.
        offline: Whether the process works from its cache alone.
        hidden_packages: Packages that cannot be imported there.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN_SETTINGS)}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": hub.write_token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(STARTUP),
        "OMP_NUM_THREADS": "1",
    }
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    if hidden_packages:
        environment["HUB_TEST_HIDDEN_PACKAGES"] = ",".join(hidden_packages)
    return environment


def run_client(code: str, environment: dict[str, str], timeout: float = 120) -> str:
    """Run Python code in a fresh process, away from the repository, and give back what it printed."""
    home = Path(environment["HF_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"the client process failed:\n{done.stdout}{done.stderr}"
    return done.stdout
