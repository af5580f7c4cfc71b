"""Read by every Python that `launching` starts: one that ends beside threads of a process group has failed.

Such a thread aborts the process now and then, as Python ends. Where there is no /proc, nothing is checked.
"""

import atexit
import os
import sys
from pathlib import Path


def check() -> None:
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    left = sorted(name for name in names if "gloo" in name)
    if left:
        print(f"ended beside the threads {left}", file=sys.stderr, flush=True)
        os._exit(70)


atexit.register(check)
