"""RecTools in an environment of its own, run as commands: the peer of the benchmarks."""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.benchmarks.figures import Record
from pipelines.benchmarks.process import Command, Finished, finish
from pipelines.benchmarks.setting import Log, Setting, as_flags
from pipelines.configs import RunConfig

logger = logging.getLogger(__name__)

REQUIREMENTS = ("rectools[torch]==0.19.0", "torch==2.13.0", "pyarrow<22")
"""RecTools pins an older numpy and pyarrow than we need, hence its own environment."""
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""What ``recsys.training.seed.keep_freed_memory`` does for us, and no less: freed memory stays."""
MALLOC_NOTE = (
    "The peer runs with MALLOC_* variables so that glibc keeps freed memory, which is faster; "
    "ours asks for the same by mallopt where it trains and evaluates, and scores as it is."
)


@dataclass(frozen=True, slots=True)
class Peer:
    """RecTools' SASRec with the softmax loss, of a run's width, layers, heads and length."""

    python: Path
    record: Record

    @staticmethod
    def of(setting: Setting, record: Record) -> "Peer":
        """Find the peer's environment, or make it.

        Args:
            setting: May name one.
            record: Is told commands and versions.

        Returns:
            The peer.

        Raises:
            ValueError: If the environment named has no Python, or cannot be made.
        """
        folder = setting.peer_env or setting.out / "peer-env"
        python = folder / "bin" / "python"
        if setting.peer_env is not None and not python.exists():
            raise ValueError(f"--peer-env {folder} holds no bin/python.")
        ready = folder / "rectools-is-installed"
        if setting.peer_env is None and not ready.exists():
            logger.info("installing RecTools into %s, once", folder)
            steps: tuple[Command, ...] = (
                [sys.executable, "-m", "venv", folder],
                [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
            )
            for command in steps:
                record.command(command)
                finish(command)
            ready.touch()
        if MALLOC_NOTE not in record.notes:
            record.notes.append(MALLOC_NOTE)
        return Peer(python.absolute(), record)

    def run(self, mode: str, log: Log, run: RunConfig, **flags: object) -> dict[str, Any]:
        """Run a mode of ``pipelines/peer_rectools.py``.

        Args:
            mode: ``train-speed``, ``recommend-speed`` or ``quality``.
            log: What it reads.
            run: Its sizes; the peer gets the same.
            **flags: More flags of the script, ``out`` among them.

        Returns:
            Its ``result.json``.
        """
        config = {"mode": mode, "events": log.events, "order": log.order, **sizes(run), **flags}
        config |= {"threads": self.record.setting.threads}
        arguments: Command = [
            self.python,
            "-m",
            "pipelines.peer_rectools",
            *as_flags(config),
        ]
        self.finish(arguments, show=mode == "quality")
        path = Path(str(flags["out"])) / "result.json"
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.record.peer = result["versions"]
        return result

    def finish(self, arguments: Command, *, show: bool = False) -> Finished:
        """Run a command in the peer's environment, noted in the record; see ``finish``."""
        threads = str(self.record.setting.threads)
        env = {**MALLOC, "OMP_NUM_THREADS": threads}
        self.record.command(arguments, env)
        return finish(arguments, env, show=show)


def sizes(run: RunConfig) -> dict[str, object]:
    """Flags that give the peer the sizes of a run."""
    return {
        "width": run.encoder.width,
        "layers": run.encoder.num_layers,
        "heads": run.encoder.num_heads,
        "length": run.context.max_history,
        "dropout": run.encoder.dropout,
    }
