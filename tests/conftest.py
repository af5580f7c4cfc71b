"""Settings of the whole suite: one thread, and caches of its own."""

from __future__ import annotations

import os
import tempfile

# Read when transformers is imported: remote code and downloads must not reach the user's own cache.
_HOME = tempfile.TemporaryDirectory(prefix="compact-tests-")
os.environ["HF_HOME"] = _HOME.name
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The Hub of the tests is a server of their own, also where the user's is switched off.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(_name, None)

import hypothesis  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

# The suite runs in several processes; more threads in each would only fight for the cores.
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("suite")


def pytest_runtest_setup() -> None:
    """Draw the same numbers in each test whatever ran before it: an unlucky draw is no failure that comes and goes."""
    torch.manual_seed(0)
