"""Reports on disk, and two of them compared user by user.

``ranks.parquet`` has a row a request, scorer and head::

    user_id         string      external id
    history_length  int32       events before the request; with user_id it names the request
    target          string      external id of the item asked for; empty where it is unknown
    scorer, head    string
    rank            float32     1 is best; infinity = could not be recommended
    slice.<column>  string      the slice the request is in; null where none
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import from_dict, read_json, to_dict, write_json
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.evaluation.report import (
    REPORT_VERSION,
    DifferenceReport,
    Report,
    adjust,
    difference_report,
    main_metrics,
)
from recsys.evaluation.slices import SliceColumn
from recsys.evaluation.table import Floats, Ints, Key, UserTable, per_user
from recsys.metrics.interval import paired_difference
from recsys.metrics.ranking import ranking_metrics

REPORT_FILE = "report.json"
RANKS_FILE = "ranks.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two evaluations on the users they share."""

    users: int
    """Users in both."""
    requests: int
    only_a: int
    """Requests found in the first alone; they are left out."""
    only_b: int
    differences: tuple[DifferenceReport, ...]
    """Each ``a - b``; names are ``scorer/head``."""


def write_report(
    folder: Path,
    report: Report,
    table: UserTable,
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str | None],
    slices: dict[str, SliceColumn],
) -> None:
    """Write ``report.json`` and ``ranks.parquet``, each atomically.

    Args:
        folder: Where; made if missing.
        report: The report.
        table: The per-user table behind it.
        user_ids: External user id of each request, (R,).
        item_ids: External item id of each internal one, (N,).
        slices: Slice columns of the requests.

    Raises:
        ValueError: If ``user_ids`` does not have one id a request.
    """
    if len(user_ids) != table.num_requests:
        raise ValueError(
            f"user_ids ({len(user_ids)}) must name the user of each of the "
            f"{table.num_requests} requests."
        )
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "user_id": pa.array(user_ids, pa.string()),
        "history_length": pa.array(table.history_length.astype(np.int32)),
        "target": pa.array([item_ids[t] or "" for t in table.target.tolist()], pa.string()),
    }
    groups = {
        f"slice.{name}": pa.array(column.texts(), pa.string()).dictionary_encode()
        for name, column in slices.items()
    }
    temporary = folder / f".{RANKS_FILE}.tmp"
    writer: pq.ParquetWriter | None = None
    for (scorer, head), ranks in table.ranks.items():
        part = pa.table(
            {
                **facts,
                "scorer": pa.array([scorer] * len(ranks)).dictionary_encode(),
                "head": pa.array([head] * len(ranks)).dictionary_encode(),
                "rank": pa.array(ranks.astype(np.float32)),
                **groups,
            }
        )
        writer = writer or pq.ParquetWriter(temporary, part.schema)
        writer.write_table(part)
    if writer is not None:
        writer.close()
        os.replace(temporary, folder / RANKS_FILE)
    write_json(folder / REPORT_FILE, to_dict(report))


def read_report(folder: Path) -> Report:
    """Read a report back.

    Args:
        folder: What ``write_report`` wrote.

    Returns:
        The report.

    Raises:
        ValueError: If there is none, or it is of another version.
    """
    values = read_json(folder / REPORT_FILE)
    if isinstance(values, dict) and values.get("stage") == "ranking":
        raise ValueError(
            f"{folder} holds a report of the ranking stage: to compare models there, evaluate them "
            "in one run, --model A --model B, on the same lists."
        )
    found = values.get("version") if isinstance(values, dict) else None
    if found != REPORT_VERSION:
        raise ValueError(
            f"{folder / REPORT_FILE} is of version {found!r}; this library reads version "
            f"{REPORT_VERSION}: run `python -m pipelines evaluate` again."
        )
    return from_dict(Report, values, where=str(folder / REPORT_FILE))


def compare(a: Path, b: Path, *, replicates: int = 1000, seed: int = 0) -> Comparison:
    """Compare two evaluations user by user.

    Every head that both hold is compared with its namesake, and where a scorer is in one alone, the
    answers of the two first scorers are compared.

    Args:
        a: Folder of the first report.
        b: Folder of the second.
        replicates: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        Differences a - b on the requests both hold.

    Raises:
        ValueError: If a file is missing, the protocols differ, a request asks for different items,
            or no request is in both.
    """
    reports = (read_report(a), read_report(b))
    _check_protocols(reports[0].protocol, reports[1].protocol, a, b)
    ranks = (_Ranks.read(a), _Ranks.read(b))
    left, right = ranks[0].match(ranks[1])
    if not len(left):
        raise ValueError(f"{a} and {b} share no request: they were made on different users.")
    if ranks[0].target.take(pa.array(left)) != ranks[1].target.take(pa.array(right)):
        raise ValueError(
            f"{a} and {b} ask for different items after the same histories: they were made on "
            "different data."
        )
    users = np.unique(np.asarray(ranks[0].user)[left], return_inverse=True)[1]
    k = sorted(set(reports[0].k) & set(reports[1].k))
    if not k:
        raise ValueError(
            f"{a} was made at k = {reports[0].k}, {b} at k = {reports[1].k}: none in common."
        )
    differences = []
    order = np.argsort(users, kind="stable")
    for metric in main_metrics(k):
        for key_a, key_b in _pairs(reports):
            first, second = (
                per_user(
                    ranking_metrics(r.ranks[key][rows], [int(metric.split("@")[1])])[metric][order],
                    users[order],
                )
                for r, key, rows in ((ranks[0], key_a, left), (ranks[1], key_b, right))
            )
            differences.append(
                difference_report(
                    paired_difference(first, second, replicates=replicates, seed=seed),
                    a="/".join(key_a),
                    b="/".join(key_b),
                    metric=metric,
                    base=float(second.mean()),
                )
            )
    return Comparison(
        users=len(np.unique(users)),
        requests=len(left),
        only_a=ranks[0].size - len(left),
        only_b=ranks[1].size - len(left),
        differences=tuple(adjust(differences)),
    )


@dataclass(frozen=True, slots=True)
class _Ranks:
    user: list[str]
    history_length: Ints
    target: pa.Array
    ranks: dict[Key, Floats]

    @property
    def size(self) -> int:
        return len(self.user)

    @staticmethod
    def read(folder: Path) -> "_Ranks":
        path = folder / RANKS_FILE
        try:
            table = pq.read_table(
                path, columns=["user_id", "history_length", "target", "scorer", "head", "rank"]
            ).combine_chunks()
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path} cannot be read: {error}.") from None
        scorers = table["scorer"].cast(pa.string()).to_numpy()
        heads = table["head"].cast(pa.string()).to_numpy()
        change = np.flatnonzero((scorers[1:] != scorers[:-1]) | (heads[1:] != heads[:-1])) + 1
        bounds = [0, *change.tolist(), len(scorers)]
        rank = table["rank"].to_numpy().astype(np.float64)
        ranks = {
            (str(scorers[start]), str(heads[start])): rank[start:stop]
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
        }
        size = bounds[1]
        return _Ranks(
            user=table["user_id"][:size].to_pylist(),
            history_length=table["history_length"][:size].to_numpy().astype(np.int64),
            target=table["target"][:size].combine_chunks(),
            ranks=ranks,
        )

    def match(self, other: "_Ranks") -> tuple[Ints, Ints]:
        """Rows of the requests both hold."""
        place = {
            key: i
            for i, key in enumerate(zip(other.user, other.history_length.tolist(), strict=True))
        }
        both = [
            (i, place[key])
            for i, key in enumerate(zip(self.user, self.history_length.tolist(), strict=True))
            if key in place
        ]
        found = np.array(both, dtype=np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]


def _check_protocols(a: EvaluationProtocol, b: EvaluationProtocol, at: Path, bt: Path) -> None:
    first, second = to_dict(a), to_dict(b)
    unlike = [
        f"{name} ({first[name]!r} and {second[name]!r})"
        for name in first
        if name != "num_users" and first[name] != second[name]
    ]
    if unlike:
        raise ValueError(
            f"{at} and {bt} cannot be compared: their protocols differ in {', '.join(unlike)}."
        )


def _pairs(reports: tuple[Report, Report]) -> list[tuple[Key, Key]]:
    keys = tuple([(head.scorer, head.head) for head in report.heads] for report in reports)
    same = [(key, key) for key in keys[0] if key in keys[1]]
    first = tuple(
        next((h.scorer, h.head) for h in report.heads if h.is_answer) for report in reports
    )
    return same if first[0] == first[1] else [(first[0], first[1]), *same]
