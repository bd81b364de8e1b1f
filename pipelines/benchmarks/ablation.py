"""The paper's ablations for us: tables 3–6 on synthetic worlds, their main rows on public logs.

python -m pipelines benchmark ablation --out data/ablation --data search --tables 3
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pipelines.benchmarks.ablation_cells import Cell, Stage, Table, changed, rows_of, run_of
from pipelines.benchmarks.ablation_data import AblationData, open_data, prepared
from pipelines.benchmarks.ablation_report import report, show
from pipelines.benchmarks.ablation_run import MODEL, Outcome, OutOfTimeError, run_cell
from pipelines.benchmarks.figures import Record, Rows
from pipelines.benchmarks.setting import Setting, use_threads

logger = logging.getLogger(__name__)

COLUMNS: Final = ("recall@10", "recall@100", "recall@500", "ndcg@10")
"""Metrics of the printed rows of retrieval; the file has all."""
RETRIEVER: Final = Cell(name="the retriever of the lists", view="ranking")
"""Draws the lists that ranking is tested on where a log has no impressions, with the first seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationBenchmark:
    """Which tables, on what, how long."""

    out: Path
    """Folder of logs, prepared data, cells and results. A stopped benchmark goes on in it, and
    several may share it, each with its own seeds, once the data are prepared."""
    data: str = "world"
    """world, search (synthetic); taobao, trivago, ml-1m, beauty (public logs with a local copy); or
    the folder of a prepared data set."""
    tables: tuple[Literal["3", "4", "5", "6"], ...] = ("3", "4", "5", "6")
    """The paper's tables. Of public logs only the main rows are run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None
    """Of every cell; None = those of the data set's run."""
    minutes: float = 30.0
    """Most a cell may train at a time. Its best weights so far are then tested, and the table says
    so; a cell without any, as one of ranking, is left out and goes on the next time."""
    replicates: int = 1000
    """Bootstrap samples of users."""
    threads: int = 1
    """Processor threads of a cell."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must be at least one, none twice.")
        if self.minutes <= 0 or (self.epochs is not None and self.epochs < 1):
            raise ValueError(
                f"minutes ({self.minutes}) must be above 0, epochs ({self.epochs}) at least 1."
            )


def benchmark_ablation(config: AblationBenchmark) -> dict[str, Any]:
    """Train and test every cell of the tables, seed by seed, and compare the rows.

    Args:
        config: What.

    Returns:
        The results, as saved in ``OUT/ablation-DATA.json``.
    """
    setting = Setting(out=config.out, threads=config.threads)
    name, data = open_data(config.data)
    record = Record(f"ablation-{name}", setting)
    use_threads(setting)
    results: dict[str, Any] = {"data": name, "seeds": config.seeds, "tables": {}}
    rows: Rows = [("data", name), ("seeds", ", ".join(map(str, config.seeds)))]
    for number in config.tables:
        table = rows_of(number, only_main=data.only_main)
        outcomes: dict[str, list[Outcome]] = {}
        for cell in _distinct(table, data):
            try:
                outcomes[cell.name] = [
                    _outcome(config, data, table.stage, cell, seed) for seed in config.seeds
                ]
            except OutOfTimeError as error:
                logger.warning("%s", error)
                record.notes.append(f"table {number}, {cell.name!r} is left out: {error}")
        found = report(table, outcomes, replicates=config.replicates)
        show(found, *_metrics(table.stage, found))
        results["tables"][number] = found
        seconds = sum(sum(row["seconds"]) for row in found["rows"])
        rows.append((f"table {number}", f"{len(outcomes)} rows, {seconds:,.0f} s of training"))
    record.save(results, rows)
    return results


def _metrics(stage: Stage, found: dict[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """Metrics of the printed rows and of the differences: of ranking, what the log's tasks have."""
    if stage == "retrieval":
        return COLUMNS, ("recall@10", "recall@100", "ndcg@10")
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["metrics"]))
    return names, list(dict.fromkeys([*names[:2], *names[-2:-1]]))


def _distinct(table: Table, data: AblationData) -> list[Cell]:
    """Rows that this log can have; of those that are one run on it, the first."""
    found: dict[str, Cell] = {}
    for cell in table.cells:
        run = run_of(cell, table.stage, data.base(), data.anchors)
        if cell.view in data.views:
            found.setdefault(f"{run} {cell.view} {cell.head}", cell)
    return list(found.values())


def _outcome(
    config: AblationBenchmark, data: AblationData, stage: Stage, cell: Cell, seed: int
) -> Outcome:
    """One cell of one seed."""
    changes: dict[str, Any] = {"train.seed": seed, "train.threads": config.threads}
    if config.epochs is not None:
        changes["train.epochs"] = config.epochs
    retriever = None
    if stage == "ranking":
        changes["context.candidates"] = data.candidates
        if data.candidates == "built":
            first = _outcome(config, data, "retrieval", RETRIEVER, config.seeds[0])
            retriever = first.folder / MODEL
    logger.info("seed %d: %s", seed, cell.name)
    return run_cell(
        changed(run_of(cell, stage, data.base(), data.anchors), changes),
        prepared(data, cell.view, config.out),
        config.out / "cells",
        minutes=config.minutes,
        device=config.device,
        retriever=retriever,
    )
