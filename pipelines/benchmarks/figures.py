"""Figures and ratios: sides measured in turns, medians with the range, one JSON file a benchmark.

Machines drift: a figure alone says little. Both sides are measured one after the other, several
times, and what counts is the ratio of neighbours.
"""

import logging
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from pipelines.benchmarks.setting import Setting
from pipelines.console import table
from pipelines.provenance import provenance
from recsys.config import to_dict, write_json

logger = logging.getLogger(__name__)

T = TypeVar("T")
Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Summarise measurements, at least one."""
        if not values:
            raise ValueError("values (none) must hold at least one measurement.")
        return Spread(float(median(values)), min(values), max(values), tuple(values))

    def show(self, unit: str = "", digits: int = 0) -> str:
        """Median and range in words.

        Example:
            >>> Spread.of([1500.0, 1000.0, 2000.0]).show("/s")
            '1,500/s (1,000 … 2,000)'
        """
        body = f"{self.median:,.{digits}f}{unit}"
        if len(self.values) == 1:
            return body
        return f"{body} ({self.low:,.{digits}f} … {self.high:,.{digits}f})"


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Ratios of measurements taken next to each other.

    Args:
        over: The numerators, in the order they were taken.
        under: As many denominators.

    Returns:
        The ratios.

    Raises:
        ValueError: If the numbers of measurements differ.

    Example:
        >>> ratio([10.0, 30.0, 20.0], [5.0, 10.0, 10.0]).show("×", 1)
        '2.0× (2.0 … 3.0)'
    """
    if len(over) != len(under):
        raise ValueError(f"over ({len(over)}) and under ({len(under)}) must be equally many.")
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def in_turns(repeats: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure every side once, then every side again, and so on.

    Args:
        repeats: Rounds.
        sides: What to call, by name.

    Returns:
        What each side returned, by name, in order.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, measure in sides.items():
            logger.info("round %d of %d: %s", turn + 1, repeats, name)
            found[name].append(measure())
    return found


@dataclass(slots=True)
class Record:
    """One benchmark's account of itself: circumstances, commands, results."""

    name: str
    setting: Setting
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    peer: dict[str, Any] = field(default_factory=dict)
    """Versions of the peer."""
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    started: float = field(default_factory=time.time)

    def command(self, arguments: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
        """Note a command as a shell would take it, once."""
        head = [f"{name}={value}" for name, value in (env or {}).items()]
        line = shlex.join([*head, *map(str, arguments)])
        if line not in self.commands:
            self.commands.append(line)

    def save(self, results: dict[str, Any], rows: Rows) -> Path:
        """Write ``OUT/<name>.json`` and print the table.

        Args:
            results: JSON values; spreads may be among them.
            rows: Label and value of each line of the table.

        Returns:
            The file.
        """
        self.setting.out.mkdir(parents=True, exist_ok=True)
        path = self.setting.out / f"{self.name}.json"
        content = {
            "benchmark": self.name,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "device": {"kind": "cpu", **machine()},
            "threads": self.setting.threads,
            "load_before": self.load_before,
            "setting": to_dict(self.setting),
            "ours": provenance(),
            "peer": self.peer,
            "commands": self.commands,
            "notes": self.notes,
            "results": _plain(results),
        }
        write_json(path, content)
        table(f"benchmark {self.name}", [*rows, ("written to", str(path))])
        return path


def machine() -> dict[str, Any]:
    """The processor, its cores, and the memory."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": model, "cores": os.cpu_count(), "memory_gib": round(pages / 2**30, 1)}


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON values; floats at five digits."""
    if isinstance(value, Spread):
        value = to_dict(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
