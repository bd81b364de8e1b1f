"""Nightly scoring: raw events (parquet) → top-k recommendations (parquet), out of core, resumable.

Two stages. The events are encoded once with the model's vocabularies and spread over buckets of
users; then each bucket is scored and becomes one shard. A killed job run again with the same
arguments keeps the finished shards and ends with exactly the rows of an uninterrupted one.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.cascade.answer import Options, Stages
from recsys.cascade.frames import (
    ItemNames,
    as_integers,
    is_integer_column,
    moment_s,
    one_chunk,
    score_columns,
)
from recsys.cascade.recommender import Recommender
from recsys.cascade.retrieve import Candidates
from recsys.cascade.rules import allowed_items, make_policy
from recsys.config import from_dict, read_json, to_dict
from recsys.data.buckets import MAX_BUCKETS
from recsys.data.dataset import Histories
from recsys.data.encode import encode_histories
from recsys.data.files import LogFile, OnBadFile, list_files
from recsys.privacy.pseudonymise import Pseudonymiser
from recsys.retrieval.approximate import HnswConfig
from recsys.schema import ColumnSpec, Manifest
from recsys.scoring.inputs import identity_of, read_items
from recsys.scoring.output import MANIFEST, Identity, OutputFolder

_LOG = logging.getLogger(__name__)

ROWS_PER_GROUP = 1_000_000
"""Recommendations held in memory and written at once, about; 30 bytes each."""

EVENTS_PER_SHARD = 500_000
"""Events of a bucket, about: two at a time are sorted in memory, some 100 bytes an event."""

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done and the total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnNames:
    """Where new logs name their columns otherwise than the training logs did; None: alike."""

    user_id: str | None = None
    item_id: str | None = None
    timestamp: str | None = None
    order: str | None = None
    behavior: str | None = None
    domain: str | None = None

    def of(self, known: ColumnSpec) -> ColumnSpec:
        """The columns of the new logs.

        Args:
            known: Those of the training logs.

        Returns:
            The same with the names that are given here.
        """
        return replace(known, **{name: value for name, value in to_dict(self).items() if value})


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """What to score, and how."""

    model: Path
    """Model folder, as training saved it."""
    events: tuple[str, ...]
    """Parquet files or folders of events, local paths or URLs."""
    out: Path
    """Folder to write."""
    users: tuple[str, ...] = ()
    """Parquet files or folders of users, where the model reads user features."""
    columns: ColumnNames = field(default_factory=ColumnNames)
    k: int = 100
    """Recommendations a user."""
    as_of: str | None = None
    """Moment of scoring, seconds since 1970 or ISO 8601 (UTC where it has no zone): later events
    are not seen, and gaps are measured to it. None answers right after each user's last event."""
    filter_seen: bool = True
    """Leave out items of the visible history."""
    candidates: Candidates = "trained"
    """Recommend only items with a training event, or all of the catalogue."""
    index: Literal["exact", "hnsw"] = "exact"
    """How items are searched. The report tells the recall of ``hnsw`` against the exact search."""
    hnsw: HnswConfig = field(default_factory=HnswConfig)
    stages: Stages | None = None
    """Order by the inner product alone, or rank the best; None ranks where the model can."""
    num_candidates: int = 200
    """Retrieved items that are ranked; the others follow in their order."""
    final_score: str | None = None
    """What ranked items are ordered by: a task, for its probability, or a formula such as
    p_click**0.5 * p_order * price. None is the last task."""
    available: tuple[str, ...] = ()
    """Parquet files or folders that list the items that can be had, by item id (and domain)."""
    deny: tuple[str, ...] = ()
    """Parquet files or folders that list items never to recommend."""
    max_per_category: int | None = None
    """Items of a category (or cluster) among a user's k, at most; lists may then be shorter."""
    on_bad_file: OnBadFile = "stop"
    """Whether a file that cannot be read stops the job or is left out with a warning."""
    max_reject_fraction: float = 0.01
    """Share of unusable rows above which the job stops."""
    num_buckets: int = 0
    """Shards of the output; 0 = one for every half a million events."""
    batch_size: int = 256
    """Users the model reads at once."""
    device: str = "cpu"
    overwrite: bool = False
    """Start afresh where the folder holds another job's output."""

    def __post_init__(self) -> None:
        """Check what can be checked before reading."""
        if not self.events:
            raise ValueError("events must name at least one parquet file or folder.")
        for name, least in (("k", 1), ("batch_size", 1), ("num_buckets", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}.")
        moment_s(self.as_of)


TOTALS = ("rows", "users", "users_popular", "users_short")
"""What is counted of every shard, beside what the policy did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What the tables of a job show."""

    names: ItemNames
    tasks: tuple[str, ...] = ()
    """Tasks whose probabilities are columns; none where nothing is ranked."""
    integer_users: bool = False
    """Whether user ids are integers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """What a scoring job did. Saved as ``_manifest.json``."""

    rows: int
    """Recommendations written."""
    users: int
    users_popular: int
    """Users of whom no known item is visible: they got the most popular items."""
    users_short: int
    """Users with fewer than k recommendations."""
    policy: dict[str, int]
    """What each rule did: users whose list it changed, items it took from lists."""
    unknown_items: dict[str, int]
    """Ids that the model does not know in the lists of available and denied items."""
    stages: Stages
    index_recall: float | None
    """Share of the exact top k that an approximate index found, on a sample of users."""
    events: int
    """Rows of the events that were used."""
    rejects: dict[str, int]
    """Rows that were not, by reason; they are in ``_rejects/``."""
    drift: dict[str, int]
    """What the model does not know: events on unknown items, unknown items, and so on."""
    unknown_event_share: float
    """Share of the events that are on items the model does not know."""
    shards: int
    shards_resumed: int
    """Shards that an earlier, interrupted run had finished."""
    as_of_s: int | None
    """Moment of scoring, seconds since 1970."""
    seconds: float
    """Wall time of the run that finished, not of interrupted ones."""
    model_sha256: str
    library: str
    identity: dict[str, Any]
    """What decides every row: arguments, inputs with size and time, model."""


def score(
    config: ScoreConfig,
    *,
    pseudonymise: Pseudonymiser | None = None,
    progress: Progress | None = None,
) -> ScoreReport:
    """Score every user of a log.

    Args:
        config: What to score, and how.
        pseudonymise: As it was when the model's data were prepared; scores then show pseudonyms.
        progress: Called as the work goes on.

    Returns:
        What was done; if this very job had finished before, the report of then.

    Raises:
        ValueError: If an input cannot be read, the model does not load or cannot do what is asked,
            the folder holds another job's output, or another job is writing there.
    """
    started = time.perf_counter()
    output = OutputFolder(config.out)
    recommender = Recommender.from_pretrained(
        config.model,
        candidates=config.candidates,
        hnsw=config.hnsw if config.index == "hnsw" else None,
        device=config.device,
    )
    recommender.retriever.check_moment(moment_s(config.as_of))
    columns = config.columns.of(recommender.manifest.columns)
    unknown: dict[str, int] = {}
    options = _options(config, recommender, columns, unknown)
    stages = recommender.cascade.stages(options)
    files = list_files(config.events, on_bad_file=config.on_bad_file)
    identity = _identity(config, files, pseudonymise)
    with output.locked():
        resumed = output.begin(identity, overwrite=config.overwrite)
        if resumed and output.is_complete:
            _LOG.info("%s is complete already; nothing to do.", config.out)
            return from_dict(ScoreReport, read_json(config.out / MANIFEST), where=MANIFEST)
        num_events = sum(file.rows for file in files)
        encoded = _encode(config, output, columns, num_events, pseudonymise, progress)
        integer_users, integer_items = (
            all(is_integer_column(f.schema, n) for f in files if f.rows and n in f.schema.names)
            for n in (columns.user_id, columns.item_id)
        )
        shown = Shown(
            names=ItemNames(
                recommender.catalogue,
                with_domain=columns.domain is not None,
                integers=integer_items,
            ),
            tasks=recommender.cascade.tasks if stages == "cascade" else (),
            integer_users=integer_users and pseudonymise is None,
        )
        counts, kept = _score_buckets(recommender, options, shown, output, encoded, progress)
        report = ScoreReport(
            **{name: counts.pop(name, 0) for name in TOTALS},
            policy=dict(counts),
            unknown_items=unknown,
            stages=stages,
            index_recall=_recall(recommender, output, encoded, config.k),
            events=encoded.rows_out,
            rejects=encoded.rejects,
            drift=encoded.counts,
            unknown_event_share=encoded.counts["events.unknown_item"] / max(1, encoded.rows_out),
            shards=encoded.num_buckets,
            shards_resumed=kept,
            as_of_s=moment_s(config.as_of),
            seconds=round(time.perf_counter() - started, 3),
            model_sha256=identity["model_sha256"],
            library=identity["library"],
            identity=identity,
        )
        output.finish(report)
    return report


def _options(
    config: ScoreConfig, recommender: Recommender, columns: ColumnSpec, unknown: dict[str, int]
) -> Options:
    """How lists are made; ids that the model does not know are counted in ``unknown``."""
    names = ItemNames(recommender.catalogue, with_domain=columns.domain is not None)
    policy = make_policy(
        names,
        recommender.catalogue,
        recommender.manifest,
        recommender.retriever.item_vectors,
        unknown,
        available=read_items(config.available, columns),
        max_per_category=config.max_per_category,
    )
    return Options(
        k=config.k,
        stages=config.stages,
        num_candidates=config.num_candidates,
        final_score=config.final_score,
        policy=policy,
        as_of=moment_s(config.as_of),
        filter_seen=config.filter_seen,
        allow=allowed_items(names, None, read_items(config.deny, columns), unknown),
        batch_size=config.batch_size,
    )


def _encode(
    config: ScoreConfig,
    output: OutputFolder,
    columns: ColumnSpec,
    num_events: int,
    pseudonymise: Pseudonymiser | None,
    progress: Progress | None,
) -> Manifest:
    """Stage 1, or what an earlier run left of it."""
    saved = output.encoded / "manifest.json"
    if saved.exists():
        return from_dict(Manifest, read_json(saved), where=str(saved))
    return encode_histories(
        config.events,
        model=config.model,
        out=output.encoded,
        users=config.users,
        columns=columns,
        max_reject_fraction=config.max_reject_fraction,
        on_bad_file=config.on_bad_file,
        num_buckets=config.num_buckets or min(MAX_BUCKETS, -(-num_events // EVENTS_PER_SHARD)),
        pseudonymise=pseudonymise,
        progress=progress,
    )


def _bucket(output: OutputFolder, number: int) -> Histories:
    return Histories(output.encoded / "histories" / f"{number:05d}.arrow")


def _recall(
    recommender: Recommender, output: OutputFolder, encoded: Manifest, k: int
) -> float | None:
    """Of an approximate index, on the first bucket whose users the model can answer."""
    if recommender.retriever.is_approximate:
        for number in range(encoded.num_buckets):
            recall = recommender.retriever.index_recall(_bucket(output, number), k)
            if recall is not None:
                return recall
    return None


def _score_buckets(
    recommender: Recommender,
    options: Options,
    shown: Shown,
    output: OutputFolder,
    encoded: Manifest,
    progress: Progress | None,
) -> tuple[Counter[str], int]:
    """Stage 2: totals over all shards, and how many were there already."""
    total: Counter[str] = Counter()
    kept = 0
    for number in range(encoded.num_buckets):
        counts = Counter(output.finished(number))
        if counts:
            kept += 1
        else:
            tables = score_bucket(recommender, _bucket(output, number), options, shown)
            with contextlib.ExitStack() as stack:
                writer: pq.ParquetWriter | None = None
                for table, part in tables:
                    if writer is None:
                        writer = stack.enter_context(_writer(output.unfinished(number), table))
                    writer.write_table(table)
                    counts.update(part)
                    if progress is not None:
                        progress("score", total["users"] + counts["users"], encoded.num_users)
            output.commit(number, counts)
        total.update(counts)
        if progress is not None:
            progress("score", total["users"], encoded.num_users)
    return total, kept


def score_bucket(
    recommender: Recommender, bucket: Histories, options: Options, shown: Shown
) -> Iterator[tuple[pa.Table, Counter[str]]]:
    """Score one bucket, a stretch of users at a time.

    Args:
        recommender: The model.
        bucket: Users with their histories.
        options: How to score.
        shown: What the tables show.

    Yields:
        Tables of about ``ROWS_PER_GROUP`` recommendations as ``score_columns`` makes them, and
        their counts (``TOTALS``, and what the policy did); at least one, however empty.
    """
    user_ids = one_chunk(bucket.user_ids)
    stretch = max(options.batch_size, ROWS_PER_GROUP // options.k)
    for start in range(0, max(1, bucket.num_users), stretch):
        rows = torch.arange(start, min(start + stretch, bucket.num_users))
        lists, effects = recommender.cascade.answer(bucket, options, rows=rows)
        ids = user_ids.slice(start, len(rows))
        ids = as_integers(ids) if shown.integer_users else ids
        table = score_columns(ids, lists, shown.names, shown.tasks)
        effects["rows"] = table.num_rows
        effects["users"] = len(rows)
        effects["users_popular"] = int(lists.is_popular.sum())
        effects["users_short"] = int((lists.ids[:, -1] < 0).sum())
        yield table, effects


def _writer(path: Path, table: pa.Table) -> pq.ParquetWriter:
    """A parquet writer whose text columns read back as plain text, not as categories."""
    repeated = [f.name for f in table.schema if not pa.types.is_floating(f.type)]
    return pq.ParquetWriter(path, table.schema, use_dictionary=repeated, store_schema=False)


def _identity(
    config: ScoreConfig, files: Sequence[LogFile], pseudonymise: Pseudonymiser | None
) -> Identity:
    settings = to_dict(config)
    for name in ("out", "overwrite", "model"):
        del settings[name]
    settings["as_of"] = moment_s(config.as_of)
    read: dict[str, Sequence[LogFile]] = {"events": files}
    for name in ("users", "available", "deny"):
        paths = getattr(config, name)
        read[name] = list_files(paths, on_bad_file=config.on_bad_file) if paths else ()
    return identity_of(settings, model=config.model, files=read, pseudonymise=pseudonymise)
