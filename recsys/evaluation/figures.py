"""Figures of a report: recall by list length, the steps of a model, slices. PNG and SVG.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in marker too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from recsys.evaluation.report import HeadReport, Report, SliceReport
from recsys.metrics.interval import Interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
GREYS = ("#333333", "#666666", "#8C8C8C", "#ADADAD")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "svg.fonttype": "none",
    "svg.hashsalt": "recsys",
}


def write_figures(report: Report, folder: Path) -> list[str]:
    """Draw every figure the report has data for.

    Args:
        report: The report.
        folder: Where to write; must exist.

    Returns:
        Names of the PNG files; an SVG of the same name lies beside each.
    """
    drawings = {"recall": recall_curves, "steps": step_bars, "slices": slice_dots}
    names = []
    with rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw(report)
            if figure is None:
                continue
            figure.savefig(folder / f"{name}.png", dpi=150)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            names.append(f"{name}.png")
    return names


def recall_curves(report: Report) -> Figure | None:
    """Recall against list length; a band for the interval of each model's head.

    Args:
        report: The report.

    Returns:
        The figure; None with fewer than two list lengths.
    """
    if len(report.k) < 2:
        return None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for head, colour, marker in _styled(report.heads):
        found = [head.metrics[f"recall@{k}"] for k in report.k]
        label = head.scorer if head.is_baseline else head.name
        axes.plot(
            report.k,
            [f.mean for f in found],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            linestyle="--" if head.is_baseline else "-",
            label=label,
        )
        if head.is_baseline:
            continue
        low, high = [f.low for f in found], [f.high for f in found]
        axes.fill_between(report.k, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(report.k, [str(k) for k in report.k])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("K, length of the list")
    axes.set_ylabel("Recall@K")
    axes.set_title(_title(report), fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, handlelength=2.6)
    return figure


def step_bars(report: Report) -> Figure | None:
    """The main metrics of every head of every model, with intervals, baselines as lines.

    Args:
        report: The report.

    Returns:
        The figure; None where no scorer has several heads.
    """
    models = [head for head in report.heads if not head.is_baseline]
    if len(models) < 2:
        return None
    baselines = [head for head in report.heads if head.is_baseline]
    figure = Figure(figsize=(max(5.0, 1.4 + 1.1 * len(models)), 3.6), layout="constrained")
    several = len({head.scorer for head in models}) > 1
    for place, metric in enumerate(report.main_metrics):
        axes: Any = figure.add_subplot(1, 2, place + 1)
        for x, head in enumerate(models):
            colour = COLOURS[sorted({h.scorer for h in models}).index(head.scorer) % len(COLOURS)]
            found = head.metrics[metric]
            axes.bar(x, found.mean, color=colour, alpha=1.0 if head.is_answer else 0.55, width=0.7)
            axes.errorbar(x, found.mean, _error(found), color="black", capsize=3, linewidth=1)
        names = [f"{h.scorer}\n{h.head}" if several else h.head for h in models]
        slant = {"rotation": 35, "ha": "right"} if len(models) > 4 else {}
        axes.set_xticks(range(len(models)), names, fontsize=8, **slant)
        if baselines:
            best = max(baselines, key=lambda head: head.metrics[metric].mean)
            axes.axhline(best.metrics[metric].mean, color="#555555", linestyle="--", linewidth=1)
            axes.set_xlabel(f"dashed: {best.scorer}, the best baseline", fontsize=8)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(_metric_name(metric))
    figure.suptitle(_title(report), fontsize=9, x=0.01, ha="left")
    return figure


def slice_dots(report: Report) -> Figure | None:
    """The main metric on every slice, for each model's answer and its reference heads.

    Args:
        report: The report.

    Returns:
        The figure; None without slices.
    """
    shown = [head for head in report.heads if not head.is_baseline] or list(report.heads)
    wanted = [h for h in shown if h.is_answer or h.head in ("prefix", "step0")][: len(COLOURS)]
    columns = list(dict.fromkeys(s.column for s in report.slices))
    if not columns or not wanted:
        return None
    metric = report.main_metrics[1]
    sizes = [len(_values(report.slices, column)) for column in columns]
    figure = Figure(
        figsize=(6.4, 1.2 + 0.34 * sum(sizes) + 0.3 * len(columns)), layout="constrained"
    )
    grid = figure.subplots(len(columns), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, column in zip(grid, columns, strict=True):
        values = _values(report.slices, column)
        for order, (head, colour, marker) in enumerate(_styled(wanted)):
            shift = 0.16 * (order - (len(wanted) - 1) / 2)
            for y, value in enumerate(values):
                found = _cell(report.slices, column, value, head).metrics[metric]
                axes.errorbar(
                    found.mean,
                    y + shift,
                    xerr=_error(found),
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1,
                    linestyle="none",
                    label=head.name if y == 0 else None,
                )
        cells = [_cell(report.slices, column, value, wanted[0]) for value in values]
        labels = [f"{c.value} ({c.users:,}{', few' if c.is_small else ''})" for c in cells]
        axes.set_yticks(range(len(values)), labels, fontsize=8)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_title(f"{column.replace('_', ' ')} (users)", fontsize=8, loc="left")
    grid[-1].set_xlabel(_metric_name(metric))
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside upper right", ncols=3)
    return figure


def _styled(heads: Sequence[HeadReport]) -> list[tuple[HeadReport, str, str]]:
    """Colours for models, greys for baselines."""
    found, model, baseline = [], 0, 0
    for head in heads:
        if head.is_baseline:
            found.append((head, GREYS[baseline % len(GREYS)], MARKERS[-1 - baseline % 4]))
            baseline += 1
        else:
            found.append((head, COLOURS[model % len(COLOURS)], MARKERS[model % len(MARKERS)]))
            model += 1
    return found


def _values(slices: Sequence[SliceReport], column: str) -> list[str]:
    return list(dict.fromkeys(s.value for s in slices if s.column == column))


def _cell(slices: Sequence[SliceReport], column: str, value: str, head: HeadReport) -> SliceReport:
    return next(
        s
        for s in slices
        if (s.column, s.value, s.scorer, s.head) == (column, value, head.scorer, head.head)
    )


def _error(value: Interval) -> list[list[float]]:
    """Distances from the mean, never negative by rounding."""
    return [[max(value.mean - value.low, 0)], [max(value.high - value.mean, 0)]]


def _metric_name(metric: str) -> str:
    return metric.replace("recall", "Recall").replace("ndcg", "NDCG")


def _title(report: Report) -> str:
    seen = "seen items filtered" if report.protocol.filter_seen else "seen items kept"
    return (
        f"{report.protocol.part}, {report.counts['users']:,} users, "
        f"{report.protocol.num_candidates:,} candidates, {seen}; {report.level:.0%} intervals"
    )
