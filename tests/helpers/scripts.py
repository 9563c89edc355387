"""Scripts of tools/, benchmarks/ and tests/checks/ as modules, which they are not by themselves."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def script(name: str) -> Any:
    """Import a script by its path from the root, such as "tools/gpu_check.py"; once a process."""
    path = ROOT / name
    sys.path.insert(0, str(path.parent))  # a script finds its neighbours there
    try:
        return import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))
