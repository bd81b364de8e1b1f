"""From the per-user table to a report: means with intervals, paired differences, slices, warnings.

``report.json``, version 1, is ``Report`` as JSON: an object with the fields of that class, nested
objects with the fields of the classes below, numbers that do not exist as null. Within a version
fields are only added. In words::

    version       integer, 1                      library   version of this library
    protocol      who is tested against what      counts    requests, users, misses by reason
    k, list_k, replicates, seed, level            how the figures below were made
    heads[]       scorer, head, is_answer, is_baseline,
                  metrics {"recall@10": {mean, low, high}, …},
                  lists   {"coverage@10": number or null, …}
    differences[] a, b ("scorer/head"), metric, slice ("" = everybody),
                  mean, low, high, relative, standard_error, smallest_detectable, p, p_holm, users
    slices[]      column, value, users, is_small, scorer, head, metrics
    warnings[]    sentences
"""

import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.protocol import EvaluationProtocol
from recsys.evaluation.slices import FEW_USERS, SliceColumn
from recsys.evaluation.table import Key, UserTable
from recsys.metrics.interval import (
    Interval,
    PairedDifference,
    holm,
    intervals,
    paired_difference,
    replicate_means,
)

REPORT_VERSION = 1
REFERENCE_HEADS = ("prefix", "step0")
"""Heads of a model that its later heads must beat."""
MAX_VALUES = 100_000_000
"""Per-user values bootstrapped at once (800 MB)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadReport:
    """One head of one scorer on all users."""

    scorer: str
    head: str
    is_answer: bool
    """Whether it is the head whose answer the scorer gives."""
    is_baseline: bool
    metrics: dict[str, Interval]
    lists: dict[str, float | None]
    """Coverage, concentration, popularity, novelty and diversity of the top lists."""

    @property
    def name(self) -> str:
        """``scorer/head``."""
        return f"{self.scorer}/{self.head}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceReport:
    """Mean of ``a - b`` over the same users."""

    a: str
    b: str
    metric: str
    slice: str = ""
    """``column=value``; empty for all users."""
    mean: float
    low: float
    high: float
    relative: float | None
    """The difference over the mean of b."""
    standard_error: float | None
    smallest_detectable: float | None
    """True difference that these users would show as significant (5 %) 80 % of the time."""
    p: float
    p_holm: float
    """Adjusted over the differences of one metric: all users together, slices together."""
    users: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceReport:
    """One head on one slice."""

    column: str
    value: str
    users: int
    is_small: bool
    """Fewer than 50 users."""
    scorer: str
    head: str
    metrics: dict[str, Interval]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A whole evaluation; see the head of this file."""

    version: int = REPORT_VERSION
    library: str = ""
    protocol: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    counts: dict[str, int] = field(default_factory=dict)
    k: tuple[int, ...] = ()
    list_k: int = 0
    replicates: int = 1000
    seed: int = 0
    level: float = 0.95
    heads: tuple[HeadReport, ...] = ()
    differences: tuple[DifferenceReport, ...] = ()
    slices: tuple[SliceReport, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def main_metrics(self) -> tuple[str, str]:
        """The metrics of tables, differences and slices: recall and NDCG at 10, or near it."""
        return main_metrics(self.k)


def main_metrics(k: Sequence[int]) -> tuple[str, str]:
    """Recall and NDCG at 10, or at the tested list length nearest to it.

    Args:
        k: Tested list lengths.

    Returns:
        Two metric names.
    """
    best = min(k, key=lambda n: (abs(n - 10), n))
    return f"recall@{best}", f"ndcg@{best}"


def build_report(
    table: UserTable,
    protocol: EvaluationProtocol,
    slices: dict[str, SliceColumn] | None = None,
    *,
    baselines: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Report:
    """Turn a per-user table into means, intervals, paired differences, slices and warnings.

    Args:
        table: What ``evaluate`` returned.
        protocol: How it was made.
        slices: Ways to divide the requests.
        baselines: Names of the scorers that are baselines: each model's answer is compared with
            them.
        replicates: Bootstrap samples.
        seed: Of the bootstrap.
        level: Of the intervals.

    Returns:
        The report.

    Raises:
        ValueError: If ``replicates`` or ``level`` is out of range.
    """
    boot = _Bootstrap(replicates, seed, level)
    values = {key: table.metrics(key) for key in table.ranks}
    means = boot.of_heads(values)
    heads = tuple(
        HeadReport(
            scorer=key[0],
            head=key[1],
            is_answer=is_answer,
            is_baseline=key[0] in baselines,
            metrics=_with_hit_rate(boot.intervals(values[key], means[key])),
            lists={name: finite(value) for name, value in table.list_metrics(key).items()},
        )
        for key, is_answer in table.heads()
    )
    wanted = main_metrics(table.k)
    differences = [
        boot.difference(a, b, metric, values, means)
        for metric in wanted
        for a, b in contrasts(table, baselines)
    ]
    slice_reports, slice_differences = _slices(table, slices or {}, wanted, boot, baselines)
    report = Report(
        library=importlib.metadata.version("recsys"),
        protocol=protocol,
        counts=counts(table),
        k=table.k,
        list_k=table.list_k,
        replicates=replicates,
        seed=seed,
        level=level,
        heads=heads,
        differences=(*adjust(differences), *adjust(slice_differences)),
        slices=tuple(slice_reports),
    )
    return replace(report, warnings=tuple(_warnings(report)))


def contrasts(table: UserTable, baselines: Sequence[str]) -> list[tuple[Key, Key]]:
    """Which heads are compared, better-if-positive first.

    Args:
        table: What ``evaluate`` returned.
        baselines: Names of the scorers that are baselines.

    Returns:
        Pairs (a, b): inside a model each head against the prefix head and the tail without steps;
        each model's answer against every baseline, and against the first model's.
    """
    pairs: list[tuple[Key, Key]] = []
    for scorer, _ in table.answers:
        heads = [key for key in table.ranks if key[0] == scorer]
        references = [key for key in heads if key[1] in REFERENCE_HEADS]
        pairs += [(a, b) for a in heads for b in references if heads.index(b) < heads.index(a)]
    models = [key for key in table.answers if key[0] not in baselines]
    pairs += [(a, models[0]) for a in models[1:]]
    pairs += [(a, b) for a in models for b in table.answers if b[0] in baselines]
    return pairs


def counts(table: UserTable) -> dict[str, int]:
    """How many requests there are, and how many are lost before any score is looked at.

    Args:
        table: What ``evaluate`` returned.

    Returns:
        ``requests``, ``users``, ``empty_histories``, ``targets_not_candidates`` (misses),
        ``targets_seen`` and ``targets_filtered`` (seen, and therefore misses).
    """
    return {
        "requests": table.num_requests,
        "users": table.num_users,
        "empty_histories": int((table.history_length == 0).sum()),
        "targets_not_candidates": int((~table.target_known).sum()),
        "targets_seen": int(table.target_seen.sum()),
        "targets_filtered": int(table.target_seen.sum()) if table.filter_seen else 0,
    }


def adjust(differences: Sequence[DifferenceReport]) -> list[DifferenceReport]:
    """Fill ``p_holm`` in, each metric being a family of its own.

    Args:
        differences: Comparisons read together.

    Returns:
        The same, in the same order.
    """
    adjusted: dict[int, float] = {}
    for metric in {d.metric for d in differences}:
        family = [i for i, d in enumerate(differences) if d.metric == metric]
        adjusted |= dict(zip(family, holm([differences[i].p for i in family]), strict=True))
    return [replace(d, p_holm=adjusted[i]) for i, d in enumerate(differences)]


def difference_report(
    found: PairedDifference, *, a: str, b: str, metric: str, base: float, slice_name: str = ""
) -> DifferenceReport:
    """Name a paired difference.

    Args:
        found: The difference.
        a: What it was taken of.
        b: What was taken away.
        metric: Of which metric.
        base: Mean of b.
        slice_name: ``column=value``; empty for all users.

    Returns:
        The difference as reports hold it, not yet adjusted.
    """
    return DifferenceReport(
        a=a,
        b=b,
        metric=metric,
        slice=slice_name,
        mean=found.mean,
        low=found.low,
        high=found.high,
        relative=found.mean / base if base > 0 else None,
        standard_error=finite(found.standard_error),
        smallest_detectable=finite(found.smallest_detectable),
        p=found.p,
        p_holm=found.p,
        users=found.num_users,
    )


def finite(value: float) -> float | None:
    """A number JSON can hold: None for NaN and infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class _Bootstrap:
    """Settings of the bootstrap, and its uses."""

    replicates: int
    seed: int
    level: float

    def of_heads(self, values: dict[Key, dict[str, Floats]]) -> dict[Key, Floats]:
        """Replicate means of every head, (replicates, metrics), all from the same draws."""
        found: dict[Key, Floats] = {}
        keys = list(values)
        if not keys:
            return found
        first = values[keys[0]]
        size = len(next(iter(first.values()))) * len(first)
        together = max(1, MAX_VALUES // max(size, 1))
        for start in range(0, len(keys), together):
            part = keys[start : start + together]
            matrix = np.stack([v for key in part for v in values[key].values()], axis=1)
            means = replicate_means(matrix, replicates=self.replicates, seed=self.seed)
            for i, key in enumerate(part):
                found[key] = means[:, i * len(first) : (i + 1) * len(first)]
        return found

    def intervals(self, values: dict[str, Floats], means: Floats) -> dict[str, Interval]:
        matrix = np.stack(list(values.values()), axis=1)
        return dict(zip(values, intervals(matrix, means, level=self.level), strict=True))

    def difference(
        self,
        a: Key,
        b: Key,
        metric: str,
        values: dict[Key, dict[str, Floats]],
        means: dict[Key, Floats],
        slice_name: str = "",
    ) -> DifferenceReport:
        column = list(values[a]).index(metric)
        found = paired_difference(
            values[a][metric],
            values[b][metric],
            level=self.level,
            means=(means[a][:, column], means[b][:, column]),
        )
        base = float(values[b][metric].mean())
        names = {"a": "/".join(a), "b": "/".join(b)}
        return difference_report(found, **names, metric=metric, base=base, slice_name=slice_name)


def _with_hit_rate(metrics: dict[str, Interval]) -> dict[str, Interval]:
    """Each request has one target, so that its hit rate is its recall."""
    hits = {
        name.replace("recall", "hit_rate"): value
        for name, value in metrics.items()
        if name.startswith("recall")
    }
    return metrics | hits


def _slices(
    table: UserTable,
    slices: dict[str, SliceColumn],
    wanted: tuple[str, ...],
    boot: _Bootstrap,
    baselines: Sequence[str],
) -> tuple[list[SliceReport], list[DifferenceReport]]:
    reports: list[SliceReport] = []
    differences: list[DifferenceReport] = []
    answers = [key for key in table.answers if key[0] not in baselines]
    pairs = [(a, b) for a, b in contrasts(table, baselines) if a in answers and b[0] == a[0]]
    k = [int(wanted[0].split("@")[1])]
    for column, labels in slices.items():
        for label in labels.labels:
            rows = labels.rows(label)
            if not rows.any():
                continue
            found = {key: table.metrics(key, k, rows) for key in table.ranks}
            values = {key: {name: found[key][name] for name in wanted} for key in found}
            means = boot.of_heads(values)
            users = len(next(iter(values[next(iter(values))].values())))
            reports += [
                SliceReport(
                    column=column,
                    value=label,
                    users=users,
                    is_small=users < FEW_USERS,
                    scorer=key[0],
                    head=key[1],
                    metrics=boot.intervals(values[key], means[key]),
                )
                for key in values
            ]
            differences += [
                boot.difference(a, b, metric, values, means, f"{column}={label}")
                for metric in wanted
                for a, b in pairs
            ]
    return reports, differences


def _warnings(report: Report) -> Iterable[str]:
    number = report.counts
    requests = max(number["requests"], 1)
    if report.protocol.split == "leave_one_out":
        yield (
            "Leave-one-out: other users' later events are in the training part, so the future "
            "leaks; use these figures to compare with papers, and a time split to decide."
        )
    if number["targets_filtered"]:
        share = number["targets_filtered"] / requests
        yield (
            f"{share:.1%} of the targets are in their user's own history and count as misses, "
            "because seen items are filtered; where people return to items, use --no-filter-seen."
        )
    if number["targets_not_candidates"]:
        share = number["targets_not_candidates"] / requests
        yield (
            f"{share:.1%} of the targets are no candidates (items without a training event, or "
            f"unknown ones): no scorer can reach a recall above {1 - share:.3f}."
        )
    small = sorted({f"{s.column}={s.value}" for s in report.slices if s.is_small})
    if small:
        yield f"Fewer than {FEW_USERS} users in: {', '.join(small)}. Read these with care."
    metric = report.main_metrics[1]
    by_name = {head.name: head for head in report.heads}
    for d in report.differences:
        base = by_name[d.b].metrics[metric].mean if d.b in by_name else 0.0
        large = d.smallest_detectable is not None and d.smallest_detectable > 0.1 * base > 0
        if d.metric == metric and not d.slice and d.b.endswith("/step0") and large:
            yield (
                f"With {d.users:,} users a true difference in {metric} of less than "
                f"{d.smallest_detectable:.4f} ({d.a} - {d.b}) would often be missed: that is more "
                "than a tenth of the reference."
            )
            break
