"""`hf compact …`: the command line as an extension of the `hf` command, installed by hf's own installer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_compact_embeddings as hce

from ..tools import REPOSITORY
from .client import client_environment, run_client
from .server import HubServer

pytest.importorskip("huggingface_hub.cli.extensions", reason="this huggingface_hub has no extensions")

# What GitHub would answer is answered from this repository.
INSTALL = """
    from pathlib import Path
    from huggingface_hub.cli import extensions

    script = Path({script!r})
    extensions._fetch_remote_binary = lambda owner, repo_name, short_name: (
        script.with_name(f"hf-{{short_name}}").read_bytes()
    )
    extensions._fetch_latest_commit_sha = lambda **where: "0" * 40
    extensions._try_fetch_remote_description = lambda **where: None
    manifest = extensions._install_extension(owner="someone", repo_name="hf-compact", short_name="compact")
    assert manifest.type == "binary", manifest
"""


@pytest.fixture
def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """A home with the extension, and the console script of the package on the path."""
    home = tmp_path / "home"
    settings = client_environment(hub, home) | {"HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    run_client(INSTALL.format(script=str(REPOSITORY / "hf-compact")), settings)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["hf-compact"].split(":")
    script = tmp_path / "bin" / "hf-compact"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    paths = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    return settings | {"PATH": paths, "PYTHONPATH": os.pathsep.join([settings["PYTHONPATH"], str(REPOSITORY)])}


def hf(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(os.name == "nt", reason="hf installs script extensions on Linux and macOS only")
def test_hf_compact_is_hf_compact(environment: dict[str, str]) -> None:
    listed = hf(environment, "compact", "methods", "--json")
    assert listed.returncode == 0, listed.stderr
    assert list(json.loads(listed.stdout)["methods"]) == list(hce.methods())
    refused = hf(environment, "compact", "push", "/nowhere", "me/repo")
    assert refused.returncode == 2
    assert "'/nowhere' is no folder with a checkpoint" in refused.stderr
    # Without the package there is one line on what to do.
    empty = environment | {"PATH": "/usr/bin:/bin"}
    missing = hf(empty, "compact", "methods")
    assert missing.returncode == 2
    assert "pip install hf_compact_embeddings" in missing.stderr
