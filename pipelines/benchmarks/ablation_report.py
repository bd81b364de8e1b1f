"""Cells of several seeds → rows with intervals, paired differences, and what could be detected.

A user's values are averaged over the seeds first; users are then the sample, as everywhere. How far
the seeds lie apart is told beside it: where they disagree, the interval over users says too much.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Grid

from pipelines.benchmarks.ablation_cells import Cell, Table
from pipelines.benchmarks.ablation_run import Outcome
from recsys.config import to_dict
from recsys.metrics.interval import bootstrap, paired_difference

Floats = NDArray[np.float64]
Outcomes = Mapping[str, Sequence[Outcome]]
"""Row's name → what it found, a seed each."""


def report(table: Table, outcomes: Outcomes, *, replicates: int = 1000) -> dict[str, Any]:
    """Compare the rows of a table.

    Args:
        table: Its rows; those without an outcome are left out.
        outcomes: What they found.
        replicates: Bootstrap samples of users.

    Returns:
        JSON values: ``rows`` (metric → mean, interval, seeds) and ``differences``.

    Raises:
        ValueError: If two cells were tested on different users.
    """
    cells = {cell.name: cell for cell in table.cells if cell.name in outcomes}
    users = [outcome.users for name in cells for outcome in outcomes[name]]
    if any(not np.array_equal(users[0], others) for others in users[1:]):
        raise ValueError(
            f"The cells of {table.title!r} were tested on different users; prepare the data anew."
        )
    found = {
        name: [answers(cell, outcome) for outcome in outcomes[name]] for name, cell in cells.items()
    }
    mean = {name: _over_seeds(seeds) for name, seeds in found.items()}
    return {
        "title": table.title,
        "note": table.note,
        "users": len(users[0]) if users else 0,
        "rows": [_row(cells[name], table, found[name], mean[name], outcomes[name], replicates)
                 for name in cells],
        "differences": [
            _difference(found, mean, name, other, replicates)
            for name, cell in cells.items()
            for other in cell.against
            if other in cells
        ],
    }  # fmt: skip


def answers(cell: Cell, outcome: Outcome) -> dict[str, Floats]:
    """The values a row shows: those of its head.

    Args:
        cell: The row.
        outcome: What one of its seeds found.

    Returns:
        Metric → (U,).
    """
    head = cell.head or outcome.heads[-1]
    start = f"{head}/"
    return {k.removeprefix(start): v for k, v in outcome.values.items() if k.startswith(start)}


def _over_seeds(seeds: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    return {name: np.mean([values[name] for values in seeds], axis=0) for name in seeds[0]}


def _row(
    cell: Cell,
    table: Table,
    seeds: Sequence[dict[str, Floats]],
    mean: dict[str, Floats],
    outcomes: Sequence[Outcome],
    replicates: int,
) -> dict[str, Any]:
    paper = None
    if cell.paper is not None:
        label, figures = cell.paper
        paper = {"row": label, **dict(zip(table.paper_metrics, figures, strict=True))}
    return {
        "name": cell.name,
        "metrics": {
            name: {
                **to_dict(bootstrap(values, replicates=replicates)[0]),
                "seeds": [float(one[name].mean()) for one in seeds],
            }
            for name, values in mean.items()
        },
        "paper": paper,
        "seconds": [outcome.facts["train_seconds"] for outcome in outcomes],
        "epochs": [outcome.facts["epochs"] for outcome in outcomes],
        "cut_short": any(outcome.facts["cut_short"] for outcome in outcomes),
    }


def _difference(
    found: Mapping[str, Sequence[dict[str, Floats]]],
    mean: Mapping[str, dict[str, Floats]],
    name: str,
    other: str,
    replicates: int,
) -> dict[str, Any]:
    a, b = mean[name], mean[other]
    return {
        "row": name,
        "against": other,
        "metrics": {
            metric: {
                **to_dict(paired_difference(a[metric], b[metric], replicates=replicates)),
                "relative": float(a[metric].mean() / b[metric].mean() - 1)
                if b[metric].mean()
                else None,
                "seeds": [
                    float(x[metric].mean() - y[metric].mean())
                    for x, y in zip(found[name], found[other], strict=False)
                ],
            }
            for metric in a
            if metric in b
        },
    }


def show(result: dict[str, Any], columns: Sequence[str], headline: Sequence[str]) -> None:
    """Print a table of rows and one of differences to stdout.

    Args:
        result: What ``report`` returned.
        columns: Metrics of the rows, where there are such.
        headline: Metrics of the differences, where there are such.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to fold lines at
    rows = result["rows"]
    there = [name for name in columns if rows and name in rows[0]["metrics"]]
    paper = next((list(row["paper"])[1:] for row in rows if row["paper"]), [])
    grid = Grid(
        "", *there, "seconds", f"paper (other data): {', '.join(paper)}",
        title=f"{result['title']}; {result['users']:,} users", title_justify="left",
        caption=f"mean [95 % over users] ± spread of seeds. {result['note']}",
        caption_justify="left",
    )  # fmt: skip
    for row in rows:
        shown = [_interval(row["metrics"][name]) for name in there]
        figures = list((row["paper"] or {}).values())
        theirs = f"{figures[0]}: {', '.join(f'{x:.3f}' for x in figures[1:])}" if figures else "-"
        took = f"{np.mean(row['seconds']):.0f}{' (cut short)' if row['cut_short'] else ''}"
        grid.add_row(row["name"], *shown, took, theirs)
    console.print(grid)
    there = [name for name in headline if rows and name in rows[0]["metrics"]]
    if result["differences"] and there:
        grid = Grid("row", "against", *there, title="Differences", title_justify="left")
        for line in result["differences"]:
            grid.add_row(
                line["row"], line["against"], *(_change(line["metrics"][name]) for name in there)
            )
        console.print(grid)


def _interval(found: dict[str, Any]) -> str:
    seeds = found["seeds"]
    spread = f" ± {np.std(seeds, ddof=1):.4f}" if len(seeds) > 1 else ""
    return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]{spread}"


def _change(found: dict[str, Any]) -> str:
    relative = "" if found["relative"] is None else f" ({found['relative']:+.1%})"
    seeds = " ".join(f"{value:+.4f}" for value in found["seeds"])
    return (
        f"{found['mean']:+.4f}{relative} [{found['low']:+.4f}, {found['high']:+.4f}]\n"
        f"detectable {found['smallest_detectable']:.4f}; seeds {seeds}"
    )
