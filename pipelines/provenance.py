"""What made a result: configuration, versions, commit. Saved beside it as ``run.json``."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from recsys.config import write_json

PACKAGES = ("recsys", "torch", "torchrec", "numpy", "polars", "pyarrow", "transformers")


def provenance() -> dict[str, Any]:
    """Versions of what computes, the commit of the checkout, and the machine's kind."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_provenance(folder: Path, values: dict[str, Any]) -> None:
    """Write ``run.json`` into a folder.

    Args:
        folder: Of the result.
        values: What else to record, such as the resolved configuration.
    """
    write_json(folder / "run.json", {**provenance(), **values})


def _commit() -> str | None:
    root = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
