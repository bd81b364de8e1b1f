"""A report in words and tables, for people."""

from collections.abc import Sequence

from recsys.evaluation.report import DifferenceReport, HeadReport, Report, SliceReport
from recsys.metrics.interval import Interval

MAX_SLICE_HEADS = 6


def markdown(report: Report, *, figures: Sequence[str] = ()) -> str:
    """Write a report as Markdown.

    Args:
        report: The report.
        figures: File names of figures beside it, shown at the end.

    Returns:
        The text.
    """
    recall, ndcg = report.main_metrics
    parts = ["# Evaluation", _protocol(report)]
    if report.warnings:
        parts.append("## Read first\n\n" + "\n".join(f"- {w}" for w in report.warnings))
    parts.append(
        f"## Results\n\nMean over users, with {report.level:.0%} bootstrap intervals "
        f"({report.replicates:,} samples of the users). The last head of a model is its answer.\n\n"
        + _heads(report)
    )
    parts.append("### At other list lengths\n\n" + _curves(report))
    if any(head.lists for head in report.heads):
        parts.append(f"## Lists\n\n{_LISTS.format(k=report.list_k)}\n\n" + _lists(report))
    overall = [d for d in report.differences if not d.slice]
    if overall:
        parts.append(
            "## Differences, user by user\n\n" + DIFFERENCES + "\n\n" + difference_table(overall)
        )
    if report.slices:
        parts.append(f"## Slices\n\nMean {recall} / {ndcg}.\n\n" + _slices(report))
    inside = [d for d in report.differences if d.slice and d.metric == ndcg]
    if inside:
        parts.append(
            f"### Does reasoning help here? ({ndcg})\n\n" + difference_table(inside, slices=True)
        )
    if figures:
        parts.append("## Figures\n\n" + "\n\n".join(f"![{f.split('.')[0]}]({f})" for f in figures))
    return "\n\n".join(parts) + "\n"


_LISTS = (
    "Of the top {k}: share of the candidates that anybody is shown, concentration (Gini, 0 = all "
    "alike), mean log popularity, the same less that of the user's history, novelty in bits, share "
    "of pairs of unlike category."
)
DIFFERENCES = (
    "`a - b` over the same users. *Detectable* is the smallest true difference that these users "
    "would show as significant (5 %) four times out of five. *p* is adjusted (Holm) over the rows "
    "of one metric. An interval that excludes 0 is in bold. Seeds vary too: repeat a training "
    "before believing a small gain."
)
"""What a reader must know of a table of differences."""


def summary_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """The short table of the command line.

    Args:
        report: The report.

    Returns:
        Column names and rows: a row a head, with its main metrics and intervals.
    """
    recall, ndcg = report.main_metrics
    rows = [
        [head.scorer, head.head, interval(head.metrics[recall]), interval(head.metrics[ndcg])]
        for head in report.heads
    ]
    return ["scorer", "head", recall, ndcg], rows


def difference_rows(differences: Sequence[DifferenceReport]) -> tuple[list[str], list[list[str]]]:
    """A short table of differences for the command line.

    Args:
        differences: Which ones.

    Returns:
        Column names and rows.
    """
    rows = [
        [
            d.a if d.a == d.b else f"{d.a} - {d.b}",
            d.metric,
            f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]",
            _number(d.smallest_detectable),
            f"{d.p_holm:.3g}",
        ]
        for d in differences
    ]
    return ["difference", "metric", "mean", "detectable", "p (Holm)"], rows


def interval(value: Interval) -> str:
    """``0.1234 [0.1200, 0.1270]``."""
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _protocol(report: Report) -> str:
    number = report.counts
    return (
        f"{report.protocol.sentences()}\n\n"
        f"{number['requests']:,} requests of {number['users']:,} users; "
        f"{number['targets_not_candidates']:,} targets are no candidates (misses), "
        f"{number['targets_filtered']:,} are filtered as seen (misses), "
        f"{number['empty_histories']:,} requests have an empty history. "
        f"Library version {report.library}."
    )


def _heads(report: Report) -> str:
    best = report.main_metrics[0].split("@")[1]
    names = [f"{metric}@{best}" for metric in ("recall", "ndcg", "mrr")]
    rows = [
        [head.scorer, _head_name(head), *(interval(head.metrics[name]) for name in names)]
        for head in report.heads
    ]
    return grid(["scorer", "head", *names], rows)


def _curves(report: Report) -> str:
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in report.k]
    rows = [
        [head.name, *(f"{head.metrics[name].mean:.4f}" for name in names)] for head in report.heads
    ]
    return grid(["head", *names], rows)


def _lists(report: Report) -> str:
    names = list(next(head.lists for head in report.heads if head.lists))
    rows = [[head.name, *(_number(head.lists.get(n)) for n in names)] for head in report.heads]
    return grid(["head", *names], rows)


def _slices(report: Report) -> str:
    recall, ndcg = report.main_metrics
    shown = [head for head in report.heads if head.is_answer or not head.is_baseline]
    shown = [head for head in shown if not head.is_baseline][-MAX_SLICE_HEADS:] or shown
    cells: dict[tuple[str, str], dict[str, SliceReport]] = {}
    for found in report.slices:
        cells.setdefault((found.column, found.value), {})[f"{found.scorer}/{found.head}"] = found
    rows = []
    for (column, value), by_head in cells.items():
        any_head = next(iter(by_head.values()))
        users = f"{any_head.users:,}" + (" (few)" if any_head.is_small else "")
        metrics = [by_head[head.name].metrics for head in shown]
        rows.append(
            [column, value, users, *(f"{m[recall].mean:.4f} / {m[ndcg].mean:.4f}" for m in metrics)]
        )
    return grid(["slice", "value", "users", *(head.name for head in shown)], rows)


def difference_table(differences: Sequence[DifferenceReport], *, slices: bool = False) -> str:
    """Differences as a Markdown table.

    Args:
        differences: Which ones.
        slices: Whether to name their slices.

    Returns:
        The table; intervals that exclude 0 are in bold.
    """
    rows = []
    for d in differences:
        mean = f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
        rows.append(
            [
                *([d.slice, f"{d.users:,}"] if slices else []),
                d.a,
                d.b,
                d.metric,
                f"**{mean}**" if d.low > 0 or d.high < 0 else mean,
                "" if d.relative is None else f"{d.relative:+.1%}",
                _number(d.smallest_detectable),
                f"{d.p_holm:.3g}",
            ]
        )
    names = ["a", "b", "metric", "a - b", "relative", "detectable", "p (Holm)"]
    return grid([*(["slice", "users"] if slices else []), *names], rows)


def grid(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of column names and rows."""
    lines = [list(names), ["---"] * len(names), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head_name(head: HeadReport) -> str:
    return f"**{head.head}**" if head.is_answer and not head.is_baseline else head.head


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
