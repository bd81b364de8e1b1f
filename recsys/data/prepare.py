"""Logs → a prepared data set: read, spread, split, sort, give ids, describe.

The order of work, all of it out of core::

    read      check the logs, spread events over buckets by user          buckets.spill_events
              and the lists that were shown, where they are given         impressions
    split     find T1 and T2                                              split.split_times
    sort      order each bucket, cut it, count what training sees         buckets.sort_bucket
    fit       vocabularies and statistics from the training part          fit, items
    write     final ids into histories/, one Arrow file a bucket          histories.Finaliser
              and into impressions/                                       shown.ShownSpill
    describe  items.arrow, text vectors, vocabularies, manifest           items.make_items

Everything is written into a hidden folder beside the target and renamed at the end. The same input
gives the same bytes.
"""

import importlib.metadata
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.config import write_json
from recsys.data.anchors import AnchorsConfig
from recsys.data.buckets import (
    Pseudonymise,
    Spill,
    buckets_for,
    each_bucket,
    sort_bucket,
    spill_events,
)
from recsys.data.drift import drift
from recsys.data.encode import Progress
from recsys.data.features import StaticTable, feature_kind
from recsys.data.files import OnBadFile, list_files
from recsys.data.fit import (
    add_skip,
    check_behaviors,
    event_kinds,
    fit_behaviors,
    fit_domains,
    fit_events,
    target_codes,
    write_event_texts,
)
from recsys.data.folder import check_target, replace_folder, sha256
from recsys.data.histories import (
    Cutter,
    Finaliser,
    Tally,
    load_sorted,
    save_sorted,
    write_histories,
)
from recsys.data.impressions import ImpressionReader, spill_impressions
from recsys.data.items import Coarse, Items, make_items, training_sample
from recsys.data.read import END_OF_TIME, EventReader, TimestampUnit
from recsys.data.shown import ShownSpill, Written, with_skips
from recsys.data.split import check_split, split_times
from recsys.data.text import encode_texts
from recsys.schema import ColumnSpec, Feature, FeatureKind, ImpressionSpec, Manifest, SplitSpec
from recsys.types import FIRST_ID, UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """What to prepare, and how."""

    events: tuple[str, ...]
    """Parquet files or folders of events, local paths or URLs."""
    out: Path
    """Folder to write; may exist only as a prepared data set to --overwrite."""
    items: tuple[str, ...] = ()
    """Parquet files or folders of items."""
    users: tuple[str, ...] = ()
    """Parquet files or folders of users."""
    impressions: tuple[str, ...] = ()
    """Parquet files or folders of lists that were shown, with what became of their items."""
    columns: ColumnSpec = field(default_factory=ColumnSpec)
    impression_columns: ImpressionSpec = field(default_factory=ImpressionSpec)
    negative_feedback: bool = False
    """Make history events (behavior "skip") of items that were shown and passed over: read, never
    predicted, and no part of any count."""
    split: SplitSpec = field(default_factory=SplitSpec)
    funnel: tuple[str, ...] = ()
    """Behaviors that are tasks, weakest first, such as click cart order."""
    target_behavior: str | None = None
    """Only events of this behavior, or of a stronger task, are test targets."""
    categorical_features: tuple[str, ...] = ()
    """Declared columns whose numbers are names, such as a category id."""
    min_count: int = 1
    """Training rows that a value of a categorical or list feature needs; rarer ones are unknown."""
    text_features: tuple[str, ...] = ()
    """Declared item or event columns to turn into frozen text vectors; of events the values of the
    vocabulary, such as queries, beside their codes."""
    text_width: int = 64
    """Length of a text vector; a text_model has its own."""
    text_model: str | None = None
    """A transformers encoder for texts, a local folder or a hub name; None = TF-IDF and SVD."""
    coarse: Coarse = "auto"
    """What an item's coarse code is: a category, or a cluster of text or co-occurrence vectors."""
    num_coarse: int = 0
    """Clusters of coarse codes; 0 = the square root of the number of items."""
    coarse_events: int = 1_000_000
    """Most training events that co-occurrence is counted on (whole users, chosen by hash)."""
    timestamp_unit: TimestampUnit = "auto"
    """Unit of integer timestamps; auto decides by magnitude, file by file, and says so."""
    max_time: int = END_OF_TIME
    """Seconds since 1970; later events are rejects. The default is the year 2100."""
    max_reject_fraction: float = 0.01
    """Share of unusable rows above which the job stops."""
    on_bad_file: OnBadFile = "stop"
    """Whether a file that cannot be read stops the job or is left out with a warning."""
    anchors: AnchorsConfig = field(default_factory=AnchorsConfig)
    num_buckets: int = 0
    """Files to spread users over; 0 = one for every 1.5 million events."""
    threads: int = 2
    """Buckets sorted at once; memory grows with it."""
    previous: Path | None = None
    """An earlier prepared data set to count drift against."""
    overwrite: bool = False
    """Replace an earlier prepared data set of the same name."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before reading."""
        if not self.events:
            raise ValueError("events must name at least one parquet file or folder.")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"max_reject_fraction ({self.max_reject_fraction}) must be between 0 and 1."
            )
        for name in ("num_buckets", "num_coarse"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative.")
        for name in ("threads", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.negative_feedback and not self.impressions:
            raise ValueError("negative_feedback needs lists that were shown: pass --impressions.")
        if self.impressions and (self.columns.timestamp is None or self.columns.order is not None):
            raise ValueError(
                "impressions need events ordered by time, to tell which came before a list; "
                f"columns.timestamp is {self.columns.timestamp!r}, columns.order "
                f"{self.columns.order!r}."
            )
        spec = self.columns
        for what, features in (("items", spec.item_features), ("users", spec.user_features)):
            if features and not getattr(self, what):
                raise ValueError(
                    f"columns.{what[:-1]}_features {list(features)} need a table: pass --{what}."
                )
        declared = {*spec.item_features, *spec.user_features, *spec.event_features}
        for name in (*self.categorical_features, *self.text_features):
            if name not in declared:
                raise ValueError(
                    f"{name!r} is listed as categorical or text but is not a declared feature; "
                    f"declared are {sorted(declared)} (columns.item_features, user_features, "
                    "event_features)."
                )
        target = self.target_behavior
        if target is not None and self.funnel and target not in self.funnel:
            raise ValueError(
                f"target_behavior ({target!r}) must be one of the funnel {list(self.funnel)}."
            )


def prepare(
    config: PrepareConfig,
    *,
    pseudonymise: Pseudonymise | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Prepare logs for training, see the module's head.

    Args:
        config: What to prepare.
        pseudonymise: Turns user ids into pseudonyms; plain ids then appear nowhere in the output.
        progress: Called as the work goes on.

    Returns:
        The manifest that was written.

    Raises:
        ValueError: If the logs cannot be used as declared; the message names file, column, counts
            and the way out.
    """
    check_split(config.split, config.columns)
    check_target(config.out, config.overwrite)
    reader = EventReader(
        list_files(config.events, on_bad_file=config.on_bad_file), config.columns,
        max_time=config.max_time, timestamp_unit=config.timestamp_unit,
        on_bad_file=config.on_bad_file,
    )  # fmt: skip
    with replace_folder(config.out) as folder:
        job = _Job(config, folder, reader, progress or _silent)
        manifest = job.run(pseudonymise)
        if config.anchors.names:
            from recsys.data.anchor_fit import fit_anchors  # imports torch, which is slow

            hashes = fit_anchors(folder, manifest, config.anchors, coarse=config.coarse)
            manifest = replace(manifest, hashes=manifest.hashes | hashes)
        write_json(folder / "manifest.json", manifest)
    return manifest


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(slots=True)
class _Job:
    """One run; a method a stage."""

    config: PrepareConfig
    folder: Path
    reader: EventReader
    progress: Progress
    counts: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    vocabularies: dict[str, list[str]] = field(default_factory=dict)
    event_texts: tuple[Feature, ...] = ()
    shown: ShownSpill | None = None
    event_items: int = 0
    """Provisional item codes that events have; those beyond were only shown."""

    def run(self, pseudonymise: Pseudonymise | None) -> Manifest:
        config, columns = self.config, self.config.columns
        kinds = event_kinds(
            self.reader, categorical=config.categorical_features, text=config.text_features
        )
        items = self._table(config.items, columns.item_id, columns.domain, columns.item_features)
        users = self._table(config.users, columns.user_id, None, columns.user_features)
        if users is not None and pseudonymise is not None:
            users.rename(pseudonymise)
        shown, rows = self._impressions(kinds), self.reader.total_rows
        buckets = config.num_buckets or buckets_for(rows + (shown.total_shown if shown else 0))
        spill = spill_events(
            self.reader, self.folder, num_buckets=buckets, kinds=kinds, pseudonymise=pseudonymise,
            progress=self.progress,
        )  # fmt: skip
        spill.check_rejects(config.max_reject_fraction, config.out)
        if len(spill.codes.behaviors):
            check_behaviors(spill.codes, config.funnel, config.target_behavior)
        self.event_items = len(spill.codes.item_keys())
        if shown is not None:
            skip = add_skip(spill.codes) if config.negative_feedback else None
            lists = spill_impressions(
                shown, spill, pseudonymise=pseudonymise, progress=self.progress
            )
            lists.check_rejects(config.max_reject_fraction, config.out)
            self.shown = ShownSpill(shown, lists, skip)
        one, two = None, None
        if config.split.kind == "time":
            one, two = split_times(config.split, spill.seconds, spill.rows_out)
        tally, trained_users = self._sort(spill, kinds, users, one, two)
        if not tally.parts[0]:
            raise ValueError(
                f"The training part is empty: no event is before {one}. Move the split, or use "
                "users with three events or more for leave-one-out."
            )
        catalogue = Items.fit(spill.codes.item_keys(), tally.items, items)
        finaliser, behaviors, domains = self._fit(
            spill, kinds, tally, catalogue, users, trained_users
        )
        self._write(spill, finaliser, None if one is None or two is None else (one, two))
        skip = self.skip
        sample = partial(
            training_sample, self.folder, buckets,
            skip=None if skip is None else int(finaliser.behaviors[skip]),
        )  # fmt: skip
        item_features, num_coarse = make_items(
            self.folder, catalogue, items, config, self.vocabularies, sample=sample
        )
        write_json(self.folder / "vocabularies.json", self.vocabularies)
        self._count(spill, tally, catalogue, items, users)
        if config.previous is not None:
            self.counts |= drift(
                config.previous, self.folder, catalogue, buckets=buckets, events=spill.rows_out
            )
        for path in [*self.folder.glob("*.*"), *self.folder.glob("rejects/*")]:
            self.hashes[path.relative_to(self.folder).as_posix()] = sha256(path)
        return Manifest(
            library=f"recsys {importlib.metadata.version('recsys')}",
            columns=columns,
            split=config.split,
            validation_time=one,
            test_time=two,
            has_time=columns.timestamp is not None,
            behaviors=behaviors,
            funnel=config.funnel,
            target_behavior=config.target_behavior,
            domains=domains,
            item_features=item_features,
            user_features=finaliser.user_features,
            event_features=finaliser.event_features,
            event_texts=self.event_texts,
            negative_feedback=config.negative_feedback,
            num_items=catalogue.size,
            num_trained_items=catalogue.num_trained,
            num_coarse=num_coarse,
            num_users=tally.users,
            num_impressions=self.shown.lists if self.shown else 0,
            num_buckets=buckets,
            rows_in=spill.rows_in,
            rows_out=spill.rows_out,
            rejects=dict(sorted(spill.rejects.items())),
            counts=self.counts,
            hashes=dict(sorted(self.hashes.items())),
        )

    def _table(
        self, paths: tuple[str, ...], key: str, domain: str | None, features: tuple[str, ...]
    ) -> StaticTable | None:
        if not paths:
            return None
        return StaticTable(
            paths, key=key, domain=domain, features=features, min_count=self.config.min_count,
            on_bad_file=self.config.on_bad_file,
        )  # fmt: skip

    @property
    def skip(self) -> int | None:
        """Provisional code of negative feedback, if there is any."""
        return None if self.shown is None else self.shown.skip

    def _impressions(self, kinds: dict[str, FeatureKind]) -> ImpressionReader | None:
        """The log of lists; items are read as integers where those of the events are, and only."""
        config = self.config
        if not config.impressions:
            return None
        target = () if config.target_behavior is None else (config.target_behavior,)
        reader = ImpressionReader(
            list_files(config.impressions, on_bad_file=config.on_bad_file), config.columns,
            config.impression_columns, config.funnel or target, kinds, max_time=config.max_time,
            timestamp_unit=config.timestamp_unit, on_bad_file=config.on_bad_file,
        )  # fmt: skip
        both = reader.integer_items and self.reader.integer_items
        reader.integer_items = self.reader.integer_items = both
        return reader

    def _sort(
        self,
        spill: Spill,
        kinds: dict[str, FeatureKind],
        users: StaticTable | None,
        one: int | None,
        two: int | None,
    ) -> tuple[Tally, npt.NDArray[np.bool_]]:
        """Sort every bucket, cut it, count it; the log gives way to the sorted file."""
        config = self.config
        skip = self.skip
        targets = target_codes(spill.codes, config.funnel, config.target_behavior, skip)
        cutter = Cutter(config.split, one, two, targets)
        numeric = [n for n, k in kinds.items() if k == "numeric"]
        tally = Tally.empty(spill.codes, numeric)
        trained = np.zeros(len(users) if users is not None else 0, bool)

        def work(index: int) -> tuple[Tally, npt.NDArray[np.int64]]:
            bucket = sort_bucket(spill.take(index))
            if self.shown is not None and skip is not None:
                lists = self.shown.gather(index, bucket.user_ids)
                bucket = with_skips(bucket, lists, skip)
            cuts = cutter(bucket)
            save_sorted(spill.path(index), bucket, cuts)
            part = Tally.empty(spill.codes, numeric)
            taught = part.add(bucket, cuts, skip=skip)
            rows = np.zeros(0, np.int64)
            if users is not None:
                rows = users.rows(bucket.user_ids.filter(pa.array(taught)).to_pylist())
            return part, rows[rows >= 0]

        for index, (part, rows) in enumerate(each_bucket(work, spill.num_buckets, config.threads)):
            tally.merge(part)
            trained[rows] = True
            self.progress("sort", index + 1, spill.num_buckets)
        return tally, trained

    def _fit(
        self,
        spill: Spill,
        kinds: dict[str, FeatureKind],
        tally: Tally,
        catalogue: Items,
        users: StaticTable | None,
        trained_users: npt.NDArray[np.bool_],
    ) -> tuple[Finaliser, tuple[str, ...], tuple[str, ...]]:
        """Everything learnt from the training part; also the behaviors and domains by name."""
        config, codes = self.config, spill.codes
        behaviors, behavior_lookup = fit_behaviors(
            codes, tally, config.funnel, config.target_behavior
        )
        domains, domain_lookup = fit_domains(codes, tally)
        event_features, lookups, values = fit_events(codes, kinds, tally, config.min_count)
        self.event_texts = write_event_texts(
            self.folder, [name for name in kinds if name in config.text_features], values,
            partial(
                encode_texts, model=config.text_model, width=config.text_width, seed=config.seed
            ),
        )  # fmt: skip
        self.vocabularies |= {f"event.{name}": found for name, found in values.items()}
        user_columns = {}
        for name in config.columns.user_features if users is not None else ():
            assert users is not None
            kind = feature_kind(
                name, users.columns[name].type, categorical=config.categorical_features
            )
            user_columns[name], known = users.fit(name, kind, trained_users)
            if kind != "numeric":
                self.vocabularies[f"user.{name}"] = known
        finaliser = Finaliser(
            items=catalogue.lookup,
            item_domains=domain_lookup,
            behaviors=behavior_lookup,
            event_lookups=lookups,
            event_features=event_features,
            user_features=tuple(c.feature for c in user_columns.values()),
            users=users,
            user_columns=user_columns,
        )
        return finaliser, behaviors, domains

    def _write(self, spill: Spill, finaliser: Finaliser, times: tuple[int, int] | None) -> None:
        """Write the final histories and lists; the sorted files go."""
        shown = self.shown

        def work(index: int) -> tuple[str, str, int, Written | None]:
            bucket, cuts = load_sorted(spill.path(index))
            spill.path(index).unlink()
            new = finaliser.items[bucket.events["item"]] == UNKNOWN
            if self.skip is not None:
                new &= bucket.events["behavior"] != self.skip
            named = write_histories(self.folder, index, finaliser.table(bucket, cuts))
            lists = None
            if shown is not None:
                lists = shown.write(index, bucket, cuts, finaliser, times=times)
            return *named, int(new.sum()), lists

        unknown = 0
        written = each_bucket(work, spill.num_buckets, self.config.threads)
        for index, (name, digest, new, lists) in enumerate(written):
            self.hashes[name] = digest
            if shown is not None and lists is not None:
                shown.add(lists)
                self.hashes[lists.name] = lists.digest
            unknown += new
            self.progress("write", index + 1, spill.num_buckets)
        self.counts["events.unknown_item"] = unknown

    def _count(
        self,
        spill: Spill,
        tally: Tally,
        catalogue: Items,
        items: StaticTable | None,
        users: StaticTable | None,
    ) -> None:
        counts = self.counts
        for part, number in zip(("train", "validation", "test"), tally.parts.tolist(), strict=True):
            counts[f"events.{part}"] = number
        names = spill.codes.behaviors.texts()
        for name, number in sorted(zip(names, tally.all_behaviors.tolist(), strict=True)):
            counts[f"behavior.{name}"] = number
        counts["users.without_training"] = tally.users_without_training
        counts["items.untrained"] = catalogue.size - catalogue.num_trained - FIRST_ID
        counts["items.unknown"] = int((catalogue.lookup[: self.event_items] == UNKNOWN).sum())
        if self.shown is not None:
            counts |= self.shown.counts()
        counts["files"] = len(self.reader.files)
        counts["files.skipped"] = self.reader.skipped
        for unit, files in sorted(self.reader.units.items()):
            counts[f"files.timestamp_{unit}"] = files
        for what, table in (("items_table", items), ("users_table", users)):
            if table is not None:
                counts[f"{what}.rows"] = len(table)
                counts[f"{what}.null_id"] = table.null_ids
                counts[f"{what}.duplicate_id"] = table.duplicate_ids
