"""From the table of logits to a report: metrics by task with intervals, paired differences.

``report.json`` of the ranking stage, version 1, is ``RankingReport`` as JSON; within a version
fields are only added. In words::

    version       integer, 1          stage     "ranking"         library   version of this library
    protocol      which lists of whom, and how they are ordered
    counts        users, lists, candidates, unknown ones; by task positives and lists that hold both
    tasks, replicates, seed, level
    scorers[]     scorer, is_baseline, metrics {"click/auc": {mean, low, high}, …},
                  groupings {"click/auc": standard deviation over groupings}, calibration
    differences[] as in the retrieval's report; metric "click/auc", …
    warnings[]    sentences
"""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from recsys.evaluation.markdown import DIFFERENCES, difference_table, grid, interval
from recsys.evaluation.ranking import Floats, RankingTable, ranking_metrics_by_user
from recsys.evaluation.report import DifferenceReport, adjust, difference_report
from recsys.evaluation.slices import FEW_USERS
from recsys.metrics.interval import Interval, intervals, paired_difference, replicate_means
from recsys.ranking.calibrate import Calibration
from recsys.types import FIRST_ID

RANKING_REPORT_VERSION = 1

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingProtocol:
    """Which lists are ranked. Only reports of one protocol compare."""

    part: Literal["validation", "test"] = "test"
    split: str = "time"
    source: str = "impressions"
    """Where the lists come from: ``impressions``, or the model whose retrieval answered."""
    num_candidates: int = 0
    """Items retrieved a list; 0 for impressions."""
    filter_seen: bool = False
    """Whether items of the user's history were taken out of retrieved lists."""
    final_score: str = ""
    """What lists are ordered by."""
    groupings: int = 1
    """Groupings that scorers which read groups were asked under; metrics are of the first."""

    def sentences(self) -> str:
        """Say it in words."""
        if self.source == "impressions":
            lists = "Lists are those that users were shown"
        else:
            seen = "without" if self.filter_seen else "with"
            lists = (
                f"Lists are the {self.num_candidates} best items of {self.source}'s retrieval, "
                f"{seen} those of the user's history; a target it missed is in no list"
            )
        return (
            f"{lists}, in the {self.part} part of a {self.split} split. Display positions are "
            "unknown to every scorer. AUC and losses are of all candidates; GAUC is the mean over "
            "lists that hold both labels, weighted by their candidates; NDCG is of lists that hold "
            f"a positive, ordered by `{self.final_score}`, users weighing alike; of equal scores "
            "every order counts alike. Losses are of probabilities calibrated on the validation "
            "part."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerReport:
    """One scorer on all lists."""

    scorer: str
    is_baseline: bool
    metrics: dict[str, Interval]
    groupings: dict[str, float]
    """Standard deviation of each metric over groupings; empty where groups are not read."""
    calibration: Calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingReport:
    """A whole evaluation of the ranking stage; see the head of this file."""

    version: int = RANKING_REPORT_VERSION
    stage: Literal["ranking"] = "ranking"
    library: str = ""
    protocol: RankingProtocol = field(default_factory=RankingProtocol)
    counts: dict[str, int] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    replicates: int = 1000
    seed: int = 0
    level: float = 0.95
    scorers: tuple[ScorerReport, ...] = ()
    differences: tuple[DifferenceReport, ...] = ()
    warnings: tuple[str, ...] = ()


def build_ranking_report(
    table: RankingTable,
    protocol: RankingProtocol,
    calibrations: dict[str, Calibration],
    scores: Mapping[str, Sequence[Floats]],
    *,
    models: Sequence[str],
    pairs: Pairs,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RankingReport:
    """Turn logits into metrics with intervals, paired differences and warnings.

    Args:
        table: What ``score_lists`` returned.
        protocol: How it was made.
        calibrations: Of every scorer.
        scores: What lists are ordered by, (n,), of every scorer: by the first salt, then by each
            further one of those that read groups.
        models: Scorers that are no baselines.
        pairs: Scorers (a, b) to take the differences a - b of.
        replicates: Bootstrap samples of the users.
        seed: Of the bootstrap.
        level: Of the intervals.

    Returns:
        The report.

    Raises:
        ValueError: If ``replicates`` or ``level`` is out of range.
    """
    names = sorted(table.logits, key=lambda name: name not in models)
    values: dict[str, list[dict[str, Floats]]] = {}
    for name in names:
        logits = (table.logits[name], *table.regrouped.get(name, ()))
        values[name] = [
            ranking_metrics_by_user(table, x, calibrations[name], score)
            for x, score in zip(logits, scores[name], strict=True)
        ]
    found: dict[str, dict[str, Interval]] = {name: {} for name in names}
    differences: list[DifferenceReport] = []
    for metric in values[names[0]][0]:
        matrix = np.stack([values[name][0][metric] for name in names], axis=1)
        means = replicate_means(matrix, replicates=replicates, seed=seed)
        for name, one in zip(names, intervals(matrix, means, level=level), strict=True):
            found[name][metric] = one
        for a, b in pairs:
            i, j = names.index(a), names.index(b)
            difference = paired_difference(
                matrix[:, i], matrix[:, j], level=level, means=(means[:, i], means[:, j])
            )
            base = float(matrix[:, j].mean())
            differences.append(difference_report(difference, a=a, b=b, metric=metric, base=base))
    report = RankingReport(
        library=importlib.metadata.version("recsys"),
        protocol=protocol,
        counts=_counts(table),
        tasks=table.tasks,
        replicates=replicates,
        seed=seed,
        level=level,
        scorers=tuple(
            ScorerReport(
                scorer=name,
                is_baseline=name not in models,
                metrics=found[name],
                groupings=_spread(values[name]),
                calibration=calibrations[name],
            )
            for name in names
        ),
        differences=tuple(adjust(differences)),
    )
    return replace(report, warnings=tuple(_warnings(report)))


def _spread(values: list[dict[str, Floats]]) -> dict[str, float]:
    """Standard deviation of each metric over groupings."""
    if len(values) < 2:
        return {}
    return {
        metric: float(np.std([one[metric].mean() for one in values], ddof=1))
        for metric in values[0]
    }


def _counts(table: RankingTable) -> dict[str, int]:
    owner = table.owner
    size = np.diff(table.offsets)
    found = {
        "users": len(np.unique(table.user_index)),
        "lists": len(size),
        "candidates": len(table.item),
        "unknown": int((table.item < FIRST_ID).sum()),
    }
    for s, task in enumerate(table.tasks):
        positive = np.bincount(owner, weights=table.level > s, minlength=len(size))
        found[f"{task}.positives"] = int(positive.sum())
        found[f"{task}.lists"] = int(((positive > 0) & (positive < size)).sum())
    return found


def _warnings(report: RankingReport) -> Iterable[str]:
    number, protocol = report.counts, report.protocol
    if protocol.split == "leave_one_out":
        yield (
            "Leave-one-out: other users' later events are in the training part, so the future "
            "leaks; use these figures to compare with papers, and a time split to decide."
        )
    if protocol.part == "validation":
        yield (
            "Probabilities were calibrated on these very lists: log losses and calibration errors "
            "are those of the fit, and better than on new lists."
        )
    for task in report.tasks:
        if f"{task}/auc" not in report.scorers[0].metrics:
            yield f"All candidates are alike for task {task!r}: it has no metrics."
    for scorer in report.scorers:
        for task, fit in scorer.calibration.tasks.items():
            if fit.rows and fit.slope < 0:
                yield f"{scorer.scorer} orders {task!r} backwards on the validation part."
    if number["users"] < FEW_USERS:
        yield f"Fewer than {FEW_USERS} users: intervals are wide and their bootstrap unreliable."


def ranking_markdown(report: RankingReport) -> str:
    """Write a report as Markdown.

    Args:
        report: The report.

    Returns:
        The text.
    """
    number = report.counts
    holds = "; ".join(
        f"{task}: {number[f'{task}.positives']:,} positives, {number[f'{task}.lists']:,} lists "
        "with both labels"
        for task in report.tasks
    )
    parts = [
        "# Evaluation of the ranking stage",
        f"{report.protocol.sentences()}\n\n{number['lists']:,} lists of {number['users']:,} users "
        f"with {number['candidates']:,} candidates, {number['unknown']:,} of them unknown items. "
        f"{holds}. Library version {report.library}.",
    ]
    if report.warnings:
        parts.append("## Read first\n\n" + "\n".join(f"- {w}" for w in report.warnings))
    parts.append(
        f"## Results\n\nMeans with {report.level:.0%} bootstrap intervals ({report.replicates:,} "
        "samples of the users)."
    )
    for task in report.tasks:
        names = [m for m in report.scorers[0].metrics if m.rpartition("/")[0] == task]
        if not names:
            continue
        heads = ["scorer", *(_label(name) for name in names)]
        rows = [[s.scorer, *(interval(s.metrics[n]) for n in names)] for s in report.scorers]
        parts.append(f"### {task}\n\n" + grid(heads, rows))
        spread = [
            [s.scorer, *(f"{s.groupings[n]:.5f}" for n in names)]
            for s in report.scorers
            if s.groupings
        ]
        if spread:
            parts.append(
                f"Standard deviation over {report.protocol.groupings} groupings:\n\n"
                + grid(heads, spread)
            )
    if report.differences:
        parts.append(
            "## Differences, user by user\n\n"
            + DIFFERENCES
            + " Of losses and calibration errors less is better.\n\n"
            + difference_table(report.differences)
        )
    return "\n\n".join(parts) + "\n"


def ranking_rows(report: RankingReport) -> tuple[list[str], list[list[str]]]:
    """The short table of the command line: AUC, GAUC and NDCG of every task.

    Args:
        report: The report.

    Returns:
        Column names and rows, a row a scorer and task.
    """
    wanted = ("auc", "gauc", "ndcg@10")
    rows = [
        [s.scorer, task, *(interval(s.metrics[f"{task}/{metric}"]) for metric in wanted)]
        for s in report.scorers
        for task in report.tasks
        if all(f"{task}/{metric}" in s.metrics for metric in wanted)
    ]
    return ["scorer", "task", *wanted], rows


def _label(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ")
