"""Batch scoring, parquet to parquet, against RecTools; private memory as users grow."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.benchmarks.figures import Record, Rows, Spread, in_turns, ratio
from pipelines.benchmarks.peer import Peer, sizes
from pipelines.benchmarks.process import Command, finish
from pipelines.benchmarks.setting import (
    Log,
    Setting,
    as_flags,
    fingerprint,
    named_run,
    open_log,
    untrained,
)
from pipelines.configs import prefix_only
from recsys.config import read_json, to_dict
from recsys.model.save import save_pretrained


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreBenchmark:
    """What to score."""

    run: str = "ml-1m"
    """Named run with a reasoner; its prefix-only twin is what the peer is compared with."""
    k: int = 100
    """Recommendations a user."""
    scale: tuple[int, ...] = (1,)
    """Multiples of the log's users to measure our memory at; ``--scale 1 16``."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.k < 1 or not self.scale or min(self.scale) < 1:
            raise ValueError(
                f"k ({self.k}) must be at least 1 and scale {self.scale} one or more numbers of "
                "at least 1."
            )


@dataclass(frozen=True, slots=True)
class Scored:
    """What one scoring job took."""

    seconds: float
    """Its own account: model, events, recommendations, file; not the interpreter's start."""
    wall: float
    peak_private_mib: float
    users: int


def benchmark_score(setting: Setting, config: ScoreBenchmark) -> dict[str, Any]:
    """Measure scoring.

    Args:
        setting: Where to work and on what.
        config: What.

    Returns:
        The results, as saved.
    """
    record = Record("score", setting)
    log, run = open_log(setting), named_run(config.run)
    peer = Peer.of(setting, record)
    record.notes.append(
        "Both load a saved model, read the parquet log, recommend k unseen items to every user and "
        "write parquet. Seconds are the job's own account; process_seconds add the start."
    )
    work = setting.out / "work-score"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    models = {"prefix": prefix_only(run), "reasoned": run}
    for name, one in models.items():
        context = to_dict(replace(one.context, requests_per_row=0))
        save_pretrained(untrained(one, log.dataset), work / name, log.dataset.path, context=context)
    common = {"events": log.events, "order": log.order, "out": work / "peer", "k": config.k}
    flags = as_flags({**common, **sizes(run), "threads": setting.threads})
    script: Command = [peer.python, "-m", "pipelines.benchmarks.peer_score"]
    peer.finish([*script, "fit", *flags])

    def theirs() -> Scored:
        done = peer.finish([*script, "score", *flags])
        result = read_json(work / "peer" / "result.json")
        record.peer = result["versions"]
        return Scored(result["seconds"], done.seconds, done.peak_private_mib, result["users"])

    def ours(model: str, events: Path = log.events) -> Scored:
        return _ours(record, config.k, work / model, events, work / "scores")

    sides: dict[str, Callable[[], Scored]] = {
        "prefix": partial(ours, "prefix"),
        "peer": theirs,
        "reasoned": partial(ours, "reasoned"),
    }
    found = in_turns(setting.repeats, sides)
    results = _summary(log, found)
    rows = _rows(results, run.reasoner.num_steps)
    peaks: dict[int, float] = {}
    for scale in config.scale if len(config.scale) > 1 else ():
        events = _many_users(log.events, scale, setting.out / "logs")
        scored = ours("reasoned", events)
        peaks[scale] = scored.peak_private_mib
        results.setdefault("by_scale", {})[scale] = to_dict(scored)
        shown = f"{scored.peak_private_mib:,.0f} MiB private, {scored.users:,} users"
        rows.append((f"ours at {scale} × the users", f"{shown}, {scored.seconds:.1f} s"))
    if peaks:
        results["memory_growth"] = max(peaks.values()) / peaks[config.scale[0]]
    record.save(results, rows)
    shutil.rmtree(work)
    return results


def _ours(record: Record, k: int, model: Path, events: Path, out: Path) -> Scored:
    shutil.rmtree(out, ignore_errors=True)
    flags = as_flags({"model": model, "events": events, "out": out, "k": k})
    command = [sys.executable, "-m", "pipelines", "score", *flags]
    threads = str(record.setting.threads)
    env = {"OMP_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads}
    record.command(command, env)
    done = finish(command, env)
    report = read_json(out / "_manifest.json")
    return Scored(report["seconds"], done.seconds, done.peak_private_mib, report["users"])


def _summary(log: Log, found: dict[str, list[Scored]]) -> dict[str, Any]:
    speed = {name: [s.users / s.seconds for s in runs] for name, runs in found.items()}
    wall = {name: [s.users / s.wall for s in runs] for name, runs in found.items()}
    ours = [name for name in found if name != "peer"]
    return {
        "log": log.facts,
        "users_per_second": {name: Spread.of(v) for name, v in speed.items()},
        "process_seconds": {n: Spread.of([s.wall for s in runs]) for n, runs in found.items()},
        "peak_private_mib": {
            n: Spread.of([s.peak_private_mib for s in runs]) for n, runs in found.items()
        },
        "over_peer": {name: ratio(speed[name], speed["peer"]) for name in ours},
        "over_peer_with_start": {name: ratio(wall[name], wall["peer"]) for name in ours},
    }


def _rows(results: dict[str, Any], num_steps: int) -> Rows:
    rows: Rows = [("log", ", ".join(f"{k} {v}" for k, v in results["log"].items()))]
    titles = {
        "prefix": "ours, prefix head",
        "reasoned": f"ours, K = {num_steps}",
        "peer": "RecTools recommend",
    }
    for name, title in titles.items():
        shown = [
            results["users_per_second"][name].show(" users/s"),
            results["process_seconds"][name].show(" s with start", 1),
            results["peak_private_mib"][name].show(" MiB private"),
        ]
        if name != "peer":
            shown += [
                results["over_peer"][name].show("× the peer", 2),
                results["over_peer_with_start"][name].show("× with start", 2),
            ]
        rows.append((title, "; ".join(shown)))
    return rows


def _many_users(events: Path, scale: int, folder: Path) -> Path:
    """The log with every user ``scale`` times under other ids, a file each."""
    target = folder / f"{fingerprint(events)}-times-{scale}"
    if not (target / "complete").exists():
        table = pq.read_table(events)
        names = table["user_id"].cast(pa.string())
        (target / "events").mkdir(parents=True, exist_ok=True)
        place = table.schema.get_field_index("user_id")
        for copy in range(scale):
            suffix = pa.scalar(f"-{copy}")
            copied = pc.binary_join_element_wise(names, suffix, "")
            one = table.set_column(place, "user_id", copied)
            pq.write_table(one, target / "events" / f"part-{copy:05d}.parquet")
        (target / "complete").touch()
    return target / "events"
