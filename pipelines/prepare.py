"""Logs → a prepared data set.

python -m pipelines prepare --events data/demo/events.parquet --out data/demo/prepared
"""

import time
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.console import bars, table
from pipelines.pseudonyms import Pseudonyms
from recsys.data.prepare import PrepareConfig, prepare
from recsys.schema import Manifest


def run(
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")],
    *,
    pseudonymise: Pseudonyms = Pseudonyms(),  # noqa: B008  (frozen)
) -> None:
    """Read, check, split and encode logs into a memory-mapped data set, out of core."""
    started = time.perf_counter()
    with bars() as progress:
        manifest = prepare(config, pseudonymise=pseudonymise.build(), progress=progress)
    table("Prepared", report(manifest, config.out, time.perf_counter() - started))


def report(manifest: Manifest, out: Path, seconds: float) -> list[tuple[str, str]]:
    """Label and value of each line of the table."""
    counts, parts = manifest.counts, ("train", "validation", "test")
    rejected = ", ".join(f"{name} {number:,}" for name, number in manifest.rejects.items())
    lines = [
        ("rows in", f"{manifest.rows_in:,}"),
        ("rows used", f"{manifest.rows_out:,}"),
        ("rejected", rejected or "0"),
        ("users", f"{manifest.num_users:,}"),
        ("items", f"{manifest.num_items - 2:,} ({manifest.num_trained_items:,} trained)"),
        ("train / valid / test", " / ".join(f"{counts[f'events.{p}']:,}" for p in parts)),
        ("on unknown items", f"{counts['events.unknown_item']:,}"),
    ]  # fmt: skip
    if "impressions.rows_in" in counts:
        left = {n.rpartition(".")[2]: c for n, c in counts.items() if ".rejected." in n}
        lines += [
            ("lists shown", f"{manifest.num_impressions:,}, {counts['impressions.items']:,} items"),
            ("rows of them in", f"{counts['impressions.rows_in']:,}"),
            ("rejected of them", ", ".join(f"{n} {c:,}" for n, c in left.items()) or "0"),
        ]  # fmt: skip
    one, two, split = manifest.validation_time, manifest.test_time, "leave-one-out"
    if one is not None and two is not None:
        split = f"validation from {_moment(one)}, test from {_moment(two)} (UTC)"
    lines.append(("split", split))
    units = {n.removeprefix("files.timestamp_"): c for n, c in counts.items() if "timestamp_" in n}
    times = ", ".join(f"{u} in {number} file(s)" for u, number in units.items()) or "none"
    lines.append(("times read as", times))
    if any(name.startswith("rejects/") for name in manifest.hashes):
        lines.append(("rejects", str(out / "rejects")))
    return [*lines, ("seconds", f"{seconds:.1f}"), ("written to", str(out))]


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def main(argv: list[str] | None = None) -> int:
    """Run the job with command line arguments."""
    tyro.cli(run, args=argv, prog="python -m pipelines prepare")
    return 0
