"""Nightly scoring: raw events (parquet) → top-k recommendations (parquet), out of core, resumable.

Two stages. The events are encoded once with the model's vocabularies and spread over buckets of
users; then each bucket is scored and becomes one shard. A killed job run again with the same
arguments keeps the finished shards and ends with exactly the rows of an uninterrupted one.
"""

import contextlib
import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

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
from recsys.config import from_dict, read_json
from recsys.data.dataset import Histories
from recsys.data.encode import encode_histories
from recsys.data.files import LogFile, OnBadFile, list_files
from recsys.schema import Manifest
from recsys.scoring.output import MANIFEST, Identity, OutputFolder

_LOG = logging.getLogger(__name__)

ROWS_PER_GROUP = 1_000_000
"""Recommendations held in memory and written at once, about; 30 bytes each."""

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done and the total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """What to score, and how."""

    model: Path
    """Model folder, as training saved it."""
    events: tuple[str, ...]
    """Parquet files or folders of events, local paths or URLs; columns as in training."""
    out: Path
    """Folder to write."""
    users: tuple[str, ...] = ()
    """Parquet files or folders of users, where the model reads user features."""
    k: int = 100
    """Recommendations a user."""
    as_of: str | None = None
    """Moment of scoring, seconds since 1970 or ISO 8601 (UTC where it has no zone): later events
    are not seen, and gaps are measured to it. None answers right after each user's last event."""
    filter_seen: bool = True
    """Leave out items of the visible history."""
    candidates: Candidates = "trained"
    """Recommend only items with a training event, or all of the catalogue."""
    on_bad_file: OnBadFile = "stop"
    """Whether a file that cannot be read stops the job or is left out with a warning."""
    max_reject_fraction: float = 0.01
    """Share of unusable rows above which the job stops."""
    num_buckets: int = 0
    """Shards of the output; 0 = one for every 1.5 million events."""
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


def score(config: ScoreConfig, *, progress: Progress | None = None) -> ScoreReport:
    """Score every user of a log.

    Args:
        config: What to score, and how.
        progress: Called as the work goes on.

    Returns:
        What was done; if this very job had finished before, the report of then.

    Raises:
        ValueError: If an input cannot be read, the model does not load, the folder holds another
            job's output, or another job is writing there.
    """
    started = time.perf_counter()
    output = OutputFolder(config.out)
    recommender = Recommender.from_pretrained(
        config.model, candidates=config.candidates, device=config.device
    )
    recommender.retriever.check_moment(moment_s(config.as_of))
    files = list_files(config.events, on_bad_file=config.on_bad_file)
    identity = _identity(config, files)
    with output.locked():
        resumed = output.begin(identity, overwrite=config.overwrite)
        if resumed and output.is_complete:
            _LOG.info("%s is complete already; nothing to do.", config.out)
            return from_dict(ScoreReport, read_json(config.out / MANIFEST), where=MANIFEST)
        encoded = _encode(config, output, progress)
        counts, kept = _score_buckets(config, recommender, files, output, encoded, progress)
        report = ScoreReport(
            **counts,
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


def _encode(config: ScoreConfig, output: OutputFolder, progress: Progress | None) -> Manifest:
    """Stage 1, or what an earlier run left of it."""
    saved = output.encoded / "manifest.json"
    if saved.exists():
        return from_dict(Manifest, read_json(saved), where=str(saved))
    return encode_histories(
        config.events,
        model=config.model,
        out=output.encoded,
        users=config.users,
        max_reject_fraction=config.max_reject_fraction,
        on_bad_file=config.on_bad_file,
        num_buckets=config.num_buckets,
        progress=progress,
    )


def _score_buckets(
    config: ScoreConfig,
    recommender: Recommender,
    files: list[LogFile],
    output: OutputFolder,
    encoded: Manifest,
    progress: Progress | None,
) -> tuple[dict[str, int], int]:
    """Stage 2: totals over all shards, and how many were there already."""
    columns = encoded.columns
    integer_users, integer_items = (
        all(is_integer_column(f.schema, name) for f in files if f.rows and name in f.schema.names)
        for name in (columns.user_id, columns.item_id)
    )
    names = ItemNames(
        recommender.catalogue, with_domain=columns.domain is not None, integers=integer_items
    )
    total = {"rows": 0, "users": 0, "users_popular": 0, "users_short": 0}
    kept = 0
    for number in range(encoded.num_buckets):
        counts = output.finished(number)
        if counts is not None:
            kept += 1
        else:
            bucket = Histories(output.encoded / "histories" / f"{number:05d}.arrow")
            tables = score_bucket(recommender, bucket, config, names, integer_users=integer_users)
            counts = dict.fromkeys(total, 0)
            with contextlib.ExitStack() as stack:
                writer: pq.ParquetWriter | None = None
                for table, part in tables:
                    if writer is None:
                        writer = stack.enter_context(_writer(output.unfinished(number), table))
                    writer.write_table(table)
                    counts = {key: counts[key] + part[key] for key in counts}
                    if progress is not None:
                        done = total["users"] + counts["users"]
                        progress("score", done, encoded.num_users)
            output.commit(number, counts)
        total = {key: total[key] + counts[key] for key in total}
        if progress is not None:
            progress("score", total["users"], encoded.num_users)
    return total, kept


def score_bucket(
    recommender: Recommender,
    bucket: Histories,
    config: ScoreConfig,
    names: ItemNames,
    *,
    integer_users: bool = False,
) -> Iterator[tuple[pa.Table, dict[str, int]]]:
    """Score one bucket, a stretch of users at a time.

    Args:
        recommender: The model.
        bucket: Users with their histories.
        config: How to score.
        names: External ids of the items.
        integer_users: Show user ids as integers.

    Yields:
        Tables of about ``ROWS_PER_GROUP`` recommendations as ``score_columns`` makes them, and
        their counts; at least one, however empty.
    """
    user_ids = one_chunk(bucket.user_ids)
    stretch = max(config.batch_size, ROWS_PER_GROUP // config.k)
    for start in range(0, max(1, bucket.num_users), stretch):
        rows = torch.arange(start, min(start + stretch, bucket.num_users))
        ranking = recommender.retriever.rank(
            bucket,
            config.k,
            rows=rows,
            as_of=moment_s(config.as_of),
            filter_seen=config.filter_seen,
            batch_size=config.batch_size,
        )
        shown = user_ids.slice(start, len(rows))
        table = score_columns(as_integers(shown) if integer_users else shown, ranking, names)
        yield (
            table,
            {
                "rows": table.num_rows,
                "users": len(rows),
                "users_popular": int(ranking.is_popular.sum()),
                "users_short": int((ranking.ids[:, -1] < 0).sum()),
            },
        )


def _writer(path: Path, table: pa.Table) -> pq.ParquetWriter:
    """A parquet writer whose text columns read back as plain text, not as categories."""
    repeated = [name for name in table.column_names if name != "score"]
    return pq.ParquetWriter(path, table.schema, use_dictionary=repeated, store_schema=False)


def _identity(config: ScoreConfig, files: list[LogFile]) -> Identity:
    users = list_files(config.users, on_bad_file=config.on_bad_file) if config.users else []
    return {
        "k": config.k,
        "as_of": moment_s(config.as_of),
        "filter_seen": config.filter_seen,
        "candidates": config.candidates,
        "on_bad_file": config.on_bad_file,
        "max_reject_fraction": config.max_reject_fraction,
        "num_buckets": config.num_buckets,
        "batch_size": config.batch_size,
        "device": config.device,
        "events": [_fingerprint(file) for file in files],
        "users": [_fingerprint(file) for file in users],
        "model_sha256": folder_hash(config.model),
        "library": f"recsys {importlib.metadata.version('recsys')}",
    }


def _fingerprint(file: LogFile) -> list[str | int | None]:
    info = file.filesystem.get_file_info(file.path)
    return [file.name, info.size, info.mtime_ns]


def folder_hash(folder: Path) -> str:
    """Hash a model: names and contents of all its files, SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
