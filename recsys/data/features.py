"""Declared columns of items, users and events → codes, numbers and lists, fitted on training only.

Values that no training row has, or fewer than ``min_count``, are ``UNKNOWN``; numbers are
standardised with training statistics and 0 where missing. The tables of items and users are static
and held in memory, one row an id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from recsys.data.files import OnBadFile, list_files
from recsys.data.idmap import DOMAIN_SEPARATOR
from recsys.schema import Feature, FeatureKind
from recsys.types import FIRST_ID, PAD, UNKNOWN

Codes = npt.NDArray[np.int32]


def feature_kind(
    name: str, kind: pa.DataType, *, categorical: Sequence[str] = (), text: Sequence[str] = ()
) -> FeatureKind:
    """Decide how a declared column is read.

    Args:
        name: The column.
        kind: Its Arrow type.
        categorical: Columns that are categorical whatever their type.
        text: String columns to turn into frozen text vectors.

    Returns:
        Strings and booleans are categorical unless listed as text; lists multi-hot; numbers
        numeric.

    Raises:
        ValueError: If the type cannot be a feature.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if name in text:
        if not is_text and not pa.types.is_null(kind):
            raise ValueError(f"text feature {name!r} must be a string column, not {kind}.")
        return "text"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "multi_hot"
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if is_text or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return "categorical"
    if is_number:
        return "categorical" if name in categorical else "numeric"
    raise ValueError(
        f"feature {name!r} has type {kind}; expected strings, booleans, numbers or lists of them."
    )


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A categorical column's values in code order, and the step from provisional codes to them."""

    values: list[str]
    lookup: Codes
    """Final code of every provisional code, then ``UNKNOWN`` for the provisional code -1."""


def fit_vocabulary(
    texts: Sequence[str], counts: npt.NDArray[np.int64], min_count: int = 1
) -> Vocabulary:
    """Keep the values that enough training rows have, most frequent first.

    Args:
        texts: Value of each provisional code.
        counts: Training rows of each, (len(texts),).
        min_count: Rows a value needs, at least 1; rarer ones are ``UNKNOWN``.

    Returns:
        The vocabulary; ties are ordered by value.
    """
    kept = np.flatnonzero(counts >= min_count).tolist()
    kept.sort(key=lambda i: (-counts[i], texts[i]))
    lookup = np.full(len(texts) + 1, UNKNOWN, np.int32)
    lookup[kept] = np.arange(len(kept), dtype=np.int32) + FIRST_ID
    return Vocabulary([texts[i] for i in kept], lookup)


def frozen_vocabulary(texts: Sequence[str], values: Sequence[str]) -> Vocabulary:
    """Step from provisional codes to a vocabulary that is already fixed.

    Args:
        texts: Value of each provisional code.
        values: The fixed values in code order.

    Returns:
        The vocabulary; new values are ``UNKNOWN``.
    """
    known = {value: i + FIRST_ID for i, value in enumerate(values)}
    found = [known.get(t, UNKNOWN) for t in texts]
    return Vocabulary(list(values), np.array([*found, UNKNOWN], np.int32))


def moments(count: int, total: float, squares: float) -> tuple[float, float]:
    """Mean and standard deviation, rounded so that the order of summing cannot show.

    Args:
        count: Numbers summed.
        total: Their sum.
        squares: Sum of their squares.

    Returns:
        Mean and standard deviation to seven digits; (0, 1) without numbers, deviation 1 if all are
        equal.
    """
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    variance = max(0.0, squares / count - mean * mean)
    scale = variance**0.5
    if scale <= 1e-6 * max(1.0, abs(mean)):
        scale = 1.0
    return float(f"{mean:.7g}"), float(f"{scale:.7g}")


def standardise(values: npt.NDArray[np.float64], feature: Feature) -> npt.NDArray[np.float32]:
    """Numbers as the model reads them.

    Args:
        values: As logged, NaN where missing.
        feature: Its mean and scale.

    Returns:
        ``(values - mean) / scale``, 0 where missing, float32.
    """
    scaled = (values - feature.mean) / feature.scale
    return np.where(np.isfinite(scaled), scaled, 0.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One column of a static table, ready to be gathered by row."""

    feature: Feature
    values: npt.NDArray[np.generic]
    """Codes int32 or numbers float32, one a row; of a list column, all rows end to end."""
    offsets: npt.NDArray[np.int64] | None = None
    """Where each row of a list column starts, (rows + 1,)."""

    @staticmethod
    def nothing(feature: Feature) -> "Encoded":
        """A table without rows."""
        if feature.kind == "multi_hot":
            return Encoded(feature, np.zeros(0, np.int32), np.zeros(1, np.int64))
        kind = np.int32 if feature.kind == "categorical" else np.float32
        return Encoded(feature, np.zeros(0, kind))

    def gather(self, rows: npt.NDArray[np.int64], *, large: bool = False) -> pa.Array:
        """Values at table rows.

        Args:
            rows: Row numbers; -1 = not in the table.
            large: Whether lists have 64-bit offsets.

        Returns:
            int32, float32 or list<int32>; ``UNKNOWN``, 0 or an empty list where there is no row.
        """
        if self.offsets is None:
            missing = UNKNOWN if self.feature.kind == "categorical" else 0
            filled = np.append(self.values, np.array([missing], self.values.dtype))
            return pa.array(filled[rows])
        offsets = np.append(self.offsets, self.offsets[-1])  # row -1 is empty
        starts, ends = offsets[rows], offsets[rows + 1]
        starts = np.where(rows < 0, 0, starts)
        ends = np.where(rows < 0, 0, ends)
        lengths = ends - starts
        out = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(out[-1]) + np.repeat(starts - out[:-1], lengths)
        kind = pa.LargeListArray if large else pa.ListArray
        bounds = pa.array(out, pa.int64() if large else pa.int32())
        return kind.from_arrays(bounds, pa.array(self.values[places], pa.int32()))


class StaticTable:
    """The table of items or of users: different ids and the declared columns.

    Args:
        paths: Parquet files or folders.
        key: Column of the ids.
        domain: Column that, with the id, makes the key; None where ids stand alone.
        features: Declared columns.
        on_bad_file: ``"skip"`` leaves out a file that cannot be read.
        min_count: Rows that training sees a value needs to be in a vocabulary.

    Raises:
        ValueError: If a column is missing or cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        key: str,
        domain: str | None = None,
        features: Sequence[str] = (),
        on_bad_file: OnBadFile = "stop",
        min_count: int = 1,
    ) -> None:
        self.min_count = min_count
        wanted = [key, *([domain] if domain else []), *features]
        pieces = []
        for file in list_files(paths, on_bad_file=on_bad_file):
            for name in wanted:
                found = file.schema.names.count(name)
                if found != 1:
                    raise ValueError(
                        f"{file.name} has {found} columns named {name!r}, expected one; "
                        f"it has {file.schema.names}."
                    )
            with file.open() as parquet:
                pieces.append(parquet.read(columns=wanted))
        try:
            table = pa.concat_tables(pieces, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"The files {list(paths)} disagree on a column's type: {error}."
            ) from None
        ids = _text(table[key])
        good = pc.and_(pc.is_valid(ids), pc.not_equal(pc.fill_null(ids, ""), ""))
        self.null_ids = len(ids) - int(pc.sum(good).as_py() or 0)
        if domain:
            ids = pc.binary_join_element_wise(_text(table[domain]), ids, DOMAIN_SEPARATOR)
            good = pc.and_(good, pc.is_valid(ids))
            self.null_ids = len(ids) - int(pc.sum(good).as_py() or 0)
        rows = np.flatnonzero(pc.fill_null(good, False).to_numpy(zero_copy_only=False))
        names = ids.take(pa.array(rows)).to_pylist()
        self.row: dict[str, int] = {}
        """External key → row of ``columns``; the first row of a repeated key."""
        kept: list[int] = []
        for name, row in zip(names, rows.tolist(), strict=True):
            if name not in self.row:
                self.row[name] = len(kept)
                kept.append(row)
        self.duplicate_ids = len(names) - len(kept)
        take = pa.array(kept, pa.int64())
        self.columns = {n: _flat(table[n].take(take)) for n in features}

    def __len__(self) -> int:
        return len(self.row)

    def rows(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row of each external key, -1 where the table has none."""
        get = self.row.get
        return np.fromiter((get(n, -1) for n in names), np.int64, len(names))

    def fit(
        self, name: str, kind: FeatureKind, trained: npt.NDArray[np.bool_]
    ) -> tuple[Encoded, list[str]]:
        """Encode a column with a vocabulary or statistics of the rows that training sees.

        Args:
            name: A declared column; not a text column.
            kind: How it is read.
            trained: Which rows count, (rows,).

        Returns:
            The encoded column and its values in code order (empty for numbers).
        """
        if kind == "numeric":
            numbers = _numbers(self.columns[name])
            seen = numbers[trained & np.isfinite(numbers)]
            mean, scale = moments(len(seen), float(seen.sum()), float((seen * seen).sum()))
            feature = Feature(name=name, kind=kind, mean=mean, scale=scale)
            return Encoded(feature, standardise(numbers, feature)), []
        provisional, texts, offsets = self._provisional(name, kind)
        counted = provisional[trained if offsets is None else np.repeat(trained, np.diff(offsets))]
        counts = np.bincount(counted[counted >= 0], minlength=len(texts))
        vocabulary = fit_vocabulary(texts, counts, self.min_count)
        return self._encode(name, kind, provisional, offsets, vocabulary), vocabulary.values

    def apply(self, feature: Feature, values: Sequence[str]) -> Encoded:
        """Encode a column with a vocabulary or statistics that are already fixed.

        Args:
            feature: As fitted.
            values: Its vocabulary in code order.

        Returns:
            The encoded column.
        """
        if feature.kind == "numeric":
            return Encoded(feature, standardise(_numbers(self.columns[feature.name]), feature))
        provisional, texts, offsets = self._provisional(feature.name, feature.kind)
        vocabulary = frozen_vocabulary(texts, values)
        return self._encode(feature.name, feature.kind, provisional, offsets, vocabulary)

    def _provisional(
        self, name: str, kind: FeatureKind
    ) -> tuple[Codes, list[str], npt.NDArray[np.int64] | None]:
        column, offsets = self.columns[name], None
        if kind == "multi_hot":
            column, offsets = _flatten(column)
        encoded = _text(column).dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int32)
        return codes, encoded.dictionary.to_pylist(), offsets

    @staticmethod
    def _encode(
        name: str,
        kind: FeatureKind,
        provisional: Codes,
        offsets: npt.NDArray[np.int64] | None,
        vocabulary: Vocabulary,
    ) -> Encoded:
        feature = Feature(name=name, kind=kind, rows=len(vocabulary.values) + FIRST_ID)
        codes = vocabulary.lookup[provisional]
        if offsets is None:
            return Encoded(feature, codes)
        return Encoded(feature, *_unique_lists(codes, offsets))

    def rename(self, pseudonymise: Callable[[Sequence[str]], list[str]]) -> None:
        """Replace every external key by its pseudonym."""
        names = list(self.row)
        self.row = dict(zip(pseudonymise(names), self.row.values(), strict=True))

    def values(self, name: str) -> list[str | None] | list[list[str]]:
        """A categorical or list column as text, one value or list a row."""
        column = self.columns[name]
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            found = column.to_pylist()
            return [[str(v) for v in row or () if v is not None] for row in found]
        texts: list[str | None] = _text(column).to_pylist()
        return texts

    def texts(self, name: str) -> list[str]:
        """A text column, one string a row, empty where missing."""
        return [t or "" for t in _text(self.columns[name]).to_pylist()]


def _unique_lists(
    codes: Codes, offsets: npt.NDArray[np.int64]
) -> tuple[Codes, npt.NDArray[np.int64]]:
    """Drop padding and repeats inside each list; codes of a list end in ascending order."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    packed = np.unique((row << 32) | codes)
    row, codes = packed >> 32, (packed & 0xFFFFFFFF).astype(np.int32)
    row, codes = row[codes != PAD], codes[codes != PAD]
    return codes, np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(offsets) - 1))])


def _flatten(column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """A list column as its values, nulls left out, and offsets."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = column.flatten()
    keep = values.is_valid().to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(lengths)), lengths)[keep]
    counts = np.bincount(row, minlength=len(lengths))
    return values.filter(pa.array(keep)), np.concatenate([[0], np.cumsum(counts)])


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column


def _text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    column = _flat(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        whole = pc.all(pc.equal(column, pc.floor(column))).as_py()
        column = column.cast(pa.int64()) if whole is not False else column
    return column.cast(pa.string())


def _numbers(column: pa.Array) -> npt.NDArray[np.float64]:
    numbers = column.cast(pa.float64(), safe=False)
    found: npt.NDArray[np.float64] = pc.fill_null(numbers, float("nan")).to_numpy(
        zero_copy_only=False
    )
    return found


def write_table(path: Path, table: pa.Table) -> None:
    """Write one Arrow IPC file with a single record batch, under a temporary name first.

    Args:
        path: Where to write.
        table: What to write.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    temporary.replace(path)
