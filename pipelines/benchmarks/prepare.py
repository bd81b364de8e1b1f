"""Our prepare against polars' bare sort-and-group of the same log: wall time, private memory."""

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.benchmarks.figures import Record, Rows, Spread, in_turns, ratio
from pipelines.benchmarks.process import Command, Finished, finish
from pipelines.benchmarks.setting import Setting, as_flags, synthetic_log
from recsys.data.synthetic import SyntheticConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareBenchmark:
    """How large a log to prepare."""

    events_millions: float = 20.0
    """Events of the synthetic log; it is made once, at about 0.1 million a second."""
    scale: tuple[int, ...] = (1,)
    """Multiples of that many events to measure; users and items stay, so that memory should too.
    ``--scale 1 4`` is 20 M and 80 M."""
    num_users: int = 400_000
    num_items: int = 100_000
    coarse: tuple[str, ...] = ("auto", "none")
    """Settings of ``prepare --coarse`` to measure: with the items' clusters, and without."""
    bare_up_to_millions: float = 40.0
    """Larger logs are not given to the bare sort, which holds all of them in memory."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.events_millions <= 0 or not self.scale or min(self.scale) < 1:
            raise ValueError(
                f"events_millions ({self.events_millions}) must be above 0 and scale {self.scale} "
                "one or more numbers of at least 1."
            )


def benchmark_prepare(setting: Setting, config: PrepareBenchmark) -> dict[str, Any]:
    """Prepare synthetic logs, ours and bare polars in turns.

    Args:
        setting: Where to work.
        config: How large.

    Returns:
        The results, as saved.
    """
    record = Record("prepare", setting)
    record.notes.append(
        "The bare sort writes user, items, times and behaviors, sorted and grouped; ours also "
        "checks, splits, counts and gives ids. Private memory: RssAnon of all processes, sampled."
    )
    results: dict[str, Any] = {}
    rows: Rows = []
    for scale in config.scale:
        number = round(config.events_millions * 1e6) * scale
        found = _measure(setting, config, record, number)
        results[f"{number / 1e6:g}M"] = found
        rows += _rows(f"{number / 1e6:g} M events", found)
    names = list(results)
    if len(names) > 1:
        peaks = [results[name]["ours"][config.coarse[0]]["peak_private_mib"] for name in names]
        growth = {name: peak.median / peaks[0].median for name, peak in zip(names, peaks)}  # noqa: B905
        results["memory_growth"] = growth
        rows.append(("memory, of the first", ", ".join(f"{n} {g:.2f}×" for n, g in growth.items())))
    record.save(results, rows)
    return results


def _measure(
    setting: Setting, config: PrepareBenchmark, record: Record, number: int
) -> dict[str, Any]:
    world = SyntheticConfig(
        num_users=min(config.num_users, number), num_items=config.num_items, num_events=number
    )
    events = synthetic_log(world, setting.out / "logs")
    for file in sorted(events.iterdir()):  # so that the first side does not pay for the disk
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    work = setting.out / "work-prepare"
    work.mkdir(parents=True, exist_ok=True)
    bare_file = work / "bare.arrow"
    bare: Command = [sys.executable, "-m", "pipelines.benchmarks.bare_sort", events, bare_file]
    sides = {}
    if number <= config.bare_up_to_millions * 1e6:
        sides["bare"] = partial(_finish, record, bare, setting)
    for coarse in config.coarse:
        flags = {
            "events": events, "out": work / f"ours-{coarse}", "coarse": coarse,
            "funnel": ("click", "cart", "order"), "threads": setting.threads,
        }  # fmt: skip
        ours: Command = [
            sys.executable,
            "-m",
            "pipelines",
            "prepare",
            *as_flags(flags),
            "--overwrite",
        ]
        sides[coarse] = partial(_finish, record, ours, setting)
    found = in_turns(setting.repeats, sides)
    shutil.rmtree(work)
    summary: dict[str, Any] = {"events": number, "users": world.num_users, "ours": {}}
    for name, runs in found.items():
        seconds = [r.seconds for r in runs]
        figures: dict[str, Any] = {
            "seconds": Spread.of(seconds),
            "peak_private_mib": Spread.of([r.peak_private_mib for r in runs]),
        }
        if name == "bare":
            summary["bare_polars"] = figures
            continue
        if "bare" in found:
            figures["times_bare"] = ratio(seconds, [r.seconds for r in found["bare"]])
        summary["ours"][name] = figures
    return summary


def _finish(record: Record, command: Command, setting: Setting) -> Finished:
    env = {"POLARS_MAX_THREADS": str(setting.threads), "OMP_NUM_THREADS": str(setting.threads)}
    record.command(command, env)
    return finish(command, env)


def _rows(head: str, found: dict[str, Any]) -> Rows:
    rows: Rows = []
    sides = {f"ours, coarse {name}": figures for name, figures in found["ours"].items()}
    if "bare_polars" in found:
        sides = {"bare polars": found["bare_polars"], **sides}
    for name, figures in sides.items():
        shown = [
            figures["seconds"].show(" s", 1),
            figures["peak_private_mib"].show(" MiB private"),
        ]
        if "times_bare" in figures:
            shown.append(figures["times_bare"].show("× bare", 2))
        rows.append((f"{head}: {name}", ", ".join(shown)))
    return rows
