"""Models and baselines → how good they are: report.json, report.md, figures, ranks.parquet.

python -m pipelines evaluate --model runs/demo/model --data data/demo/prepared --out runs/demo/eval
python -m pipelines evaluate --stage ranking --ranking.calibrate --model runs/demo/model …
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pipelines.console import bars
from recsys.evaluation import compare as reports
from recsys.evaluation.job import report_on
from recsys.evaluation.markdown import difference_rows, summary_rows
from recsys.evaluation.models import EvaluationConfig
from recsys.evaluation.ranking_job import RankingConfig, report_on_ranking
from recsys.evaluation.ranking_report import ranking_rows


def run(
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")],
    ranking: RankingConfig,
    *,
    stage: Literal["retrieval", "ranking"] = "retrieval",
    model: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    data: Path | None = None,
    out: Path | None = None,
    compare: tuple[Path, Path] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> int:
    """Rank every target among the whole catalogue; intervals, differences, slices, baselines.

    With --stage ranking: score the candidates of lists, shown or retrieved, task by task.

    Args:
        config: How.
        ranking: How the ranking stage is tested.
        stage: Which one to test.
        model: Folder of a model; may be given several times, then they are compared.
        data: Prepared data set that the models were trained on.
        out: Folder for the report.
        compare: Two report folders: print their differences user by user, and nothing else.
        replicates: Bootstrap samples of the intervals.
        seed: Of the bootstrap.

    Returns:
        The exit code.
    """
    if compare is not None:
        found = reports.compare(*compare, replicates=replicates, seed=seed)
        left_out = f"{found.only_a:,} and {found.only_b:,} requests are in one only"
        title = f"{compare[0]} - {compare[1]}: {found.users:,} users in both; {left_out}"
        show(title, *difference_rows(found.differences))
        return 0
    if data is None or out is None:
        print("--data DIR and --out DIR are required, or --compare A B.", file=sys.stderr)
        return 2
    common = {"replicates": replicates, "seed": seed}
    with bars() as progress:
        if stage == "ranking":
            ranked = report_on_ranking(
                model, data, out, config, ranking, progress=progress, **common
            )
            rows, users = ranking_rows(ranked), ranked.counts["users"]
        else:
            report = report_on(model, data, out, config, progress=progress, **common)
            rows, users = summary_rows(report), report.counts["users"]
    show(f"{config.part}, {users:,} users; report: {out}/report.md", *rows)
    return 0


def show(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout."""
    grid = Table(*names, title=title, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to fold lines at
    console.print(grid)


def main(argv: list[str] | None = None) -> int:
    """Run the job with command line arguments."""
    return tyro.cli(run, args=argv, prog="python -m pipelines evaluate")
