"""Logs of shown lists → checked rows of shown items, spread over the users' buckets.

Two shapes are read, see ``ImpressionSpec``: a row a shown item, and a row a list. Both become rows
of shown items; ``recsys.data.shown`` puts them together to lists again, bucket by bucket. A row of
the log is used or rejected as a whole: a list with an item that cannot be read is a reject.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.buckets import Pseudonymise, Spill, Spread, spill_log, spread_users
from recsys.data.idmap import stable_hash
from recsys.data.parse import Reasons, decode, mark, read_ids, read_labels, read_times
from recsys.data.read import REJECT_SCHEMA, LogReader
from recsys.schema import ColumnSpec, FeatureKind, ImpressionSpec

Ints = npt.NDArray[np.int64]

ROW_BITS = 40
"""A row of the log is one integer: the file's number above so many bits of the row's."""
NO_POSITION = -1
_LISTS_AT_ONCE = 1 << 14
_LAST_POSITION = 32_766


@dataclass(frozen=True, slots=True)
class ImpressionBatch:
    """Shown items in file order; every array has n rows, one a shown item."""

    user: pa.Array
    item: pa.Array
    domain: pa.Array | None
    request: Ints
    """The same number for all items of a list, another for the user's other lists."""
    time: Ints
    """Microseconds since 1970."""
    position: npt.NDArray[np.int16]
    """As logged; ``NO_POSITION`` where it is missing."""
    level: npt.NDArray[np.int8]
    """0 = shown only, s + 1 = label s was the strongest reached."""
    features: dict[str, pa.Array]
    """Situation columns as read."""
    row: Ints
    """File and row, see ``ROW_BITS``."""
    rows: int
    """Rows of the log that are used."""
    rejects: pa.Table


@dataclass
class ImpressionReader(LogReader[ImpressionBatch]):
    """Streams the shown items of many files.

    Args:
        columns: Of the events: names the domain and the situation columns.
        spec: Which column stands for what.
        labels: Label columns, weakest first; those that the log has are read.
        kinds: Kind of each event feature, categorical or numeric.
        files: See ``LogReader`` for this and the other fields.

    Raises:
        ValueError: If the log has no labels, or see ``LogReader``.
    """

    columns: ColumnSpec
    spec: ImpressionSpec
    labels: Sequence[str]
    kinds: dict[str, FeatureKind]
    has_lists: bool = field(default=False, init=False)
    """Whether a row is a list."""
    present: frozenset[str] = field(default=frozenset(), init=False)
    """Names of all columns of all files."""
    integer_users: bool = field(default=False, init=False)
    integer_items: bool = field(default=False, init=False)
    first_position: int = field(default=_LAST_POSITION, init=False)
    """Smallest position of the log, known once read: positions count from 0 or from 1."""
    clicked_elsewhere: int = field(default=0, init=False)
    """Lists whose clicked item was not among those shown, known once read."""

    flag: ClassVar[str] = "impression-columns"

    def __post_init__(self) -> None:
        """Check every file's columns before any row is read."""
        spec = self.spec
        self.present = frozenset(name for file in self.files for name in file.schema.names)
        self.has_lists = spec.item_ids in self.present
        if self.has_lists:
            self.batch_rows = min(self.batch_rows, _LISTS_AT_ONCE)
        if not self.clicks and not self.present.intersection(self.labels):
            raise ValueError(
                f"The impressions have no labels: expected columns named as the funnel "
                f"{list(self.labels)}, or, where a row is a list, {spec.clicked_item!r}; there are "
                f"{sorted(self.present)}. Declare the funnel, or name the column "
                "(--impression-columns.clicked-item)."
            )
        super().__post_init__()
        self.integer_users = self.all_integers(spec.user_id)
        self.integer_items = self.all_integers(self.item_column)
        if self.clicks:
            self.integer_items &= self.all_integers(self.clicks)

    @property
    def item_column(self) -> str:
        """Column of the items."""
        return self.spec.item_ids if self.has_lists else self.spec.item_id

    @property
    def click_level(self) -> int:
        """What a click reached: the funnel's ``click`` where it has one, else its weakest task."""
        return 1 + self.labels.index("click") if "click" in self.labels else 1

    @property
    def clicks(self) -> str | None:
        """Column of the clicked item, if the log has one."""
        name = self.spec.clicked_item
        return name if self.has_lists and name in self.present else None

    @property
    def positions(self) -> str | None:
        """Column of positions, if the log has one; a list tells them itself."""
        name = self.spec.position
        return name if not self.has_lists and name in self.present else None

    @property
    def situation(self) -> list[str]:
        """Situation columns that the log has."""
        return [name for name in self.columns.situation if name in self.present]

    @property
    def total_shown(self) -> int:
        """Shown items of all files, good and bad; of lists from the files' footers."""
        if not self.has_lists:
            return self.total_rows
        total = 0
        for file in self.files:
            with file.open() as parquet:
                for group in range(parquet.metadata.num_row_groups):
                    columns = map(
                        parquet.metadata.row_group(group).column,
                        range(parquet.metadata.num_columns),
                    )
                    inside = f"{self.spec.item_ids}."
                    total += sum(
                        c.num_values for c in columns if c.path_in_schema.startswith(inside)
                    )
        return total

    def needed(self) -> dict[str, str]:
        """Column → what it is for."""
        spec = self.spec
        needed = {spec.user_id: "user_id", spec.timestamp: "timestamp"}
        needed[self.item_column] = "item_ids" if self.has_lists else "item_id"
        if not self.has_lists:
            needed[spec.request_id] = "request_id"
        optional = [(self.columns.domain, "domain"), (self.clicks, "clicked_item"),
                    (self.positions, "position")]  # fmt: skip
        needed |= {name: role for name, role in optional if name is not None}
        role = "labels" if self.has_lists else "label"
        needed |= {name: role for name in self.labels if name in self.present}
        return needed | {
            name: "numeric_features" if self.kinds[name] == "numeric" else "event_features"
            for name in self.situation
        }

    def convert(self, raw: pa.RecordBatch, name: str, row: int, unit: str) -> ImpressionBatch:
        """Check and convert rows, see ``LogReader``."""
        spec = self.spec
        reason = np.zeros(raw.num_rows, np.uint8)
        user = read_ids(raw.column(spec.user_id), self.integer_users, reason, "user_id")
        time = read_times(raw.column(spec.timestamp), unit, self.max_time, reason)
        domain = None
        if self.columns.domain is not None:
            domain = read_labels(raw.column(self.columns.domain), reason, "null_domain")
        number = [file.name for file in self.files].index(name)
        log_row = (number << ROW_BITS) + np.arange(row, row + raw.num_rows)
        if self.has_lists:
            item, owner = self._lists(raw, reason)
            request: Ints = log_row
        else:
            item = read_ids(raw.column(spec.item_id), self.integer_items, reason, "item_id")
            owner = np.arange(raw.num_rows)
            ids = read_ids(raw.column(spec.request_id), False, reason, "request_id")
            request = _hash(ids)
        good = np.flatnonzero(reason == 0)
        kept = np.flatnonzero((reason == 0)[owner])
        owner, item = owner[kept], item.take(pa.array(kept))
        take, usable = pa.array(owner), raw.take(pa.array(good))
        told = (spec.user_id, None if self.has_lists else spec.item_id, spec.timestamp)
        return ImpressionBatch(
            user=user.take(take),
            item=item,
            domain=None if domain is None else domain.take(take),
            request=request[owner],
            time=time[owner],
            position=self._positions(usable, owner),
            level=self._levels(usable, item, np.searchsorted(good, owner)),
            features={f: raw.column(f).take(take) for f in self.situation},
            row=log_row[owner],
            rows=len(good),
            rejects=self.reject(raw, told, reason, name, row)
            if len(good) < raw.num_rows
            else REJECT_SCHEMA.empty_table(),
        )

    def _lists(self, raw: pa.RecordBatch, reason: Reasons) -> tuple[pa.Array, Ints]:
        """All shown items end to end and the row of each; rows without a good list are marked."""
        column = raw.column(self.spec.item_ids)
        lengths = _lengths(column)
        mark(reason, column.is_null(), "null_item_id")
        mark(reason, lengths == 0, "empty_list")
        for label in self.present.intersection(self.labels):
            mark(reason, _lengths(raw.column(label)) != lengths, "uneven_lists")
        owner = np.repeat(np.arange(len(column)), lengths)
        of_item = np.zeros(len(owner), np.uint8)
        item = read_ids(column.flatten(), self.integer_items, of_item, "item_id")
        bad = np.flatnonzero(of_item)[::-1]  # so that a list's first bad item is told
        bad = bad[reason[owner[bad]] == 0]
        reason[owner[bad]] = of_item[bad]
        return item, owner

    def _levels(self, raw: pa.RecordBatch, item: pa.Array, owner: Ints) -> npt.NDArray[np.int8]:
        """Strongest label of each shown item of usable rows; ``owner`` is its row of ``raw``."""
        level = np.zeros(len(item), np.int8)
        if self.clicks is not None:
            column = raw.column(self.clicks)
            none = np.zeros(len(raw), np.uint8)
            clicked = read_ids(column, self.integer_items, none, "item_id")
            hit = pc.equal(decode(item), decode(clicked).take(pa.array(owner)))
            level[pc.fill_null(hit, False).to_numpy(zero_copy_only=False)] = self.click_level
            level[none[owner] > 0] = 0
            found = np.bincount(owner, weights=level, minlength=len(raw)) > 0
            self.clicked_elsewhere += int(((none == 0) & ~found).sum())
        for step, label in enumerate(self.labels, 1):
            if label in self.present:
                column = raw.column(label)
                column = column.flatten() if self.has_lists else column
                reached = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy() > 0
                level[reached] = step
        return level

    def _positions(self, raw: pa.RecordBatch, owner: Ints) -> npt.NDArray[np.int16]:
        """Position of each shown item of usable rows, as logged or, in a list, from 1."""
        if self.has_lists:
            starts = np.flatnonzero(np.diff(owner, prepend=-1))
            counts = np.diff(starts, append=len(owner))
            self.first_position = 1
            position = np.arange(1, len(owner) + 1) - np.repeat(starts, counts)
        elif self.positions is not None:
            column = pc.fill_null(raw.column(self.positions).cast(pa.int64()), NO_POSITION)
            position = np.maximum(column.to_numpy(), NO_POSITION)
            known = position[position >= 0]
            if len(known):
                self.first_position = min(self.first_position, int(known.min()))
        else:
            position = np.full(len(owner), NO_POSITION)
        return np.minimum(position, _LAST_POSITION).astype(np.int16)


def spill_impressions(
    reader: ImpressionReader,
    events: Spill,
    *,
    pseudonymise: Pseudonymise | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Spill:
    """Read the log once, append each shown item to its user's bucket, keep rejects apart.

    Args:
        reader: The log of lists.
        events: What pass 1 left behind of the events; its codes grow by what was only shown.
        pseudonymise: Replaces user ids, those of the rejects too.
        progress: Called with ``"shown"``, rows read and rows in all.

    Returns:
        The spill, a row a shown item.
    """
    codes, renamed = events.codes, dict[str, str]()
    spill = Spill(events.folder, events.num_buckets, codes, name="impressions")

    def encode(batch: ImpressionBatch) -> Spread:
        user, bucket = spread_users(batch.user, spill.num_buckets, pseudonymise, renamed)
        columns = {
            "user": user,
            "item": pa.array(codes.encode_items(batch.item, batch.domain)),
            "request": pa.array(batch.request),
            "time": pa.array(batch.time),
            "position": pa.array(batch.position),
            "level": pa.array(batch.level),
            "row": pa.array(batch.row),
        }
        columns |= codes.encode_features(batch.features)
        return pa.RecordBatch.from_pydict(columns), bucket

    spill_log(reader, spill, encode, pseudonymise=pseudonymise, stage="shown", progress=progress)
    return spill


def _lengths(column: pa.Array) -> Ints:
    lengths: Ints = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return lengths


def _hash(ids: pa.Array) -> Ints:
    """A 64-bit number an id; two lists of one user share one about never."""
    numbers = stable_hash(pc.fill_null(ids.dictionary, "").cast(pa.large_string())).view(np.int64)
    places = pc.fill_null(ids.indices, 0).to_numpy()
    return numbers[places] if len(numbers) else np.zeros(len(ids), np.int64)
