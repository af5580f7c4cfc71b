"""Scripts run as a user runs them: in processes of their own, alone or as several that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from .tools import REPOSITORY

_SECONDS = 240


def launch(*words: Any, home: Path, rank: int | None = None, ranks: int = 1, port: int = 0) -> subprocess.Popen:
    """Start a script, or a module after `-m`.

    Args:
        *words: the script and what follows it.
        home: folder in which the Hub's library may keep files.
        rank: which one of several processes it is; without, `accelerate` has no part in it.
        ranks: how many processes there are.
        port: where they meet.
    """
    paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests" / "at_start")))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": paths, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable]
    if rank is not None:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        # On CPUs, one `accelerate launch` starts one process; "machines" here make the several.
        command += ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", ranks, "--num_processes", ranks]
        command += ["--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", 1]
    return subprocess.Popen(
        [str(word) for word in (*command, *words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=home.parent,
    )


def run(*words: Any, home: Path) -> str:
    """Run a script to its end and return what it prints."""
    process = launch(*words, home=home)
    output = process.communicate(timeout=_SECONDS)[0]
    assert process.returncode == 0, output
    return output


def run_together(*words: Any, home: Path, ranks: int = 2) -> None:
    """Run a script as processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [launch(*words, home=home, rank=rank, ranks=ranks, port=port) for rank in range(ranks)]
    outputs = [process.communicate(timeout=_SECONDS)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
