"""Outputs that are whole or not there at all: write beside the target, rename at the end."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier output, and over that only when asked.

    Args:
        out: The folder to write.
        overwrite: Whether an earlier output may be replaced.

    Raises:
        ValueError: If ``out`` holds something else, or an earlier output and ``overwrite`` is off.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "manifest.json").exists():
        raise ValueError(f"{out} exists and is not a prepared data set; choose another folder.")
    if not overwrite:
        raise ValueError(
            f"{out} already holds a prepared data set; pass --overwrite to replace it."
        )


@contextlib.contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Give a hidden folder beside ``out`` to write into; it becomes ``out`` if no error is raised.

    Args:
        out: The folder to make. What is there now stays until the new one is complete.

    Yields:
        The folder to write into; its subfolder ``spill`` is for temporary files.
    """
    partial = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(rejects_folder(out), ignore_errors=True)
    try:
        (partial / "spill").mkdir(parents=True)
        (partial / "histories").mkdir()
        yield partial
        shutil.rmtree(partial / "spill")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def to_disk(folder: Path) -> None:
    """Wait until a folder and all in it are on the disk.

    A rename may reach the disk before what it renames: after a power cut the new name would then
    stand for empty files.

    Args:
        folder: What is about to be renamed.
    """
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def rejects_folder(out: Path) -> Path:
    """Where the rejects are left when a job stops because of them.

    Args:
        out: The target of the job.

    Returns:
        A folder beside it.
    """
    return out.with_name(f"{out.name}.rejects")


def sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: The file.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
