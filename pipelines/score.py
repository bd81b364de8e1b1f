"""Events → recommendations: parquet in, parquet out, out of core, resumable.

python -m pipelines score --model runs/demo/model --events data/demo/events.parquet --out scores
python -m pipelines score --model M --events E --out S --final-score "p_click**0.5 * p_order"
"""

from typing import Annotated

import tyro

from pipelines.console import bars, table
from pipelines.pseudonyms import Pseudonyms
from recsys.scoring.batch import ScoreConfig, ScoreReport, score
from recsys.training.seed import keep_freed_memory


def run(
    config: Annotated[ScoreConfig, tyro.conf.arg(name="")],
    *,
    pseudonymise: Pseudonyms = Pseudonyms(),  # noqa: B008  (frozen)
) -> None:
    """Recommend k items to every user of a log; run again to go on where it was stopped."""
    keep_freed_memory()
    with bars() as progress:
        report = score(config, pseudonymise=pseudonymise.build(), progress=progress)
    table("Scored", lines(config, report))


def lines(config: ScoreConfig, report: ScoreReport) -> list[tuple[str, str]]:
    """What a reader wants to know first.

    Args:
        config: What was asked for.
        report: What was done.

    Returns:
        Label and value of each line.
    """
    rejected = ", ".join(f"{name} {count:,}" for name, count in report.rejects.items())
    users = f"{report.users:,} ({report.users_popular:,} without known history: popular items)"
    stages: str = report.stages
    shards = f"{report.shards:,}"
    if report.index_recall is not None:
        stages += f", index finds {report.index_recall:.1%} of the exact top {config.k}"
    if report.shards_resumed:
        shards += f" ({report.shards_resumed:,} kept from an interrupted run)"
    done = [(f"policy, {name}", f"{count:,}") for name, count in sorted(report.policy.items())]
    done += [(name.replace("_", " "), f"{n:,}") for name, n in report.unknown_items.items() if n]
    return [
        ("stages", stages),
        ("users", users),
        ("recommendations", f"{report.rows:,}"),
        ("users with fewer than k", f"{report.users_short:,}"),
        *done,
        ("events read", f"{report.events:,}"),
        ("on unknown items", f"{report.unknown_event_share:.1%}"),
        ("rejected", rejected or "0"),
        ("shards", shards),
        ("seconds", f"{report.seconds:.1f}"),
        ("written to", str(config.out)),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the job with command line arguments."""
    tyro.cli(run, args=argv, prog="python -m pipelines score")
    return 0
