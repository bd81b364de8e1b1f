"""A command run to its end, with its wall time and its peak private memory."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pipelines

ROOT = Path(pipelines.__file__).resolve().parents[1]
"""Holds the packages, so that a command works from any folder."""
SAMPLE_S = 0.05
Command = Sequence[str | Path]
"""Program and arguments."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command took."""

    seconds: float
    """Wall time, the interpreter's start included."""
    peak_private_mib: float
    """Most anonymous memory of the command and its children together: not files it mapped."""
    output: str
    """What it wrote to stdout."""


def finish(
    arguments: Command, env: dict[str, str] | None = None, *, show: bool = False
) -> Finished:
    """Run a command to its end.

    Args:
        arguments: Program and arguments.
        env: Set beside the environment of this process.
        show: Let its stderr through, for a command that takes long and shows progress.

    Returns:
        What it took.

    Raises:
        ValueError: If it fails; the message ends with its last lines, where they are not shown.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    surroundings = {**os.environ, "PYTHONPATH": path, **(env or {})}
    peak, done = [0.0], threading.Event()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(a) for a in arguments],
            stdout=out,
            stderr=None if show else err,
            env=surroundings,
        )

        def watch() -> None:
            while not done.wait(SAMPLE_S):
                peak[0] = max(peak[0], private_mib(process.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            code = process.wait()
            seconds = time.perf_counter() - started
        finally:
            done.set()
            watcher.join()
            if process.poll() is None:
                process.kill()
        out.seek(0)
        err.seek(0)
        if code:
            tail = " | ".join(err.read().strip().splitlines()[-4:])
            raise ValueError(f"{' '.join(map(str, arguments))} failed with {code}: {tail}")
        return Finished(seconds, peak[0], out.read())


def private_mib(root: int) -> float:
    """Anonymous resident memory of a process and its children, MiB; 0 where there is no /proc.

    Args:
        root: Id of the process.
    """
    total, waiting = 0.0, [root]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            status = (folder / "status").read_text(encoding="ascii", errors="replace")
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except OSError:  # it ended meanwhile
            continue
        line = next((x for x in status.splitlines() if x.startswith("RssAnon:")), "x 0")
        total += int(line.split()[1]) / 1024
    return total
