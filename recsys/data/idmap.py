"""External ids ↔ internal ids, and the stable hash that spreads users over buckets.

An external id is a string or an integer; its text is what counts, so that ``7`` in one file and
``"7"`` in the next are one user. An internal id is a small integer: see ``recsys.types``.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.types import FIRST_ID, UNKNOWN

DOMAIN_SEPARATOR = "\u241f"
"""Between domain and item id where items are keyed by both."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_LARGEST = 10**18  # integers of up to 18 digits are hashed as numbers, longer ones as text
_PRIME = np.uint64(0x100000001B3)


def stable_hash(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Hash external ids alike on every machine, in every version, as integer or as text.

    Args:
        ids: Integers or strings without nulls, (n,).

    Returns:
        One hash an id, (n,) uint64. An integer and its decimal text hash alike.
    """
    if pa.types.is_integer(ids.type) and ids.type != pa.uint64():
        numbers = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
        if not len(numbers) or (numbers.max() < _LARGEST and numbers.min() > -_LARGEST):
            return _mix(numbers.view(np.uint64))
    text = ids.cast(pa.large_string())
    hashes = _hash_text(text)
    decimal = pc.match_substring_regex(text, r"^(0|-?[1-9][0-9]{0,17})$")
    if pc.any(decimal).as_py():
        where = decimal.to_numpy(zero_copy_only=False)
        numbers = text.filter(decimal).cast(pa.int64()).to_numpy()
        hashes[where] = _mix(numbers.view(np.uint64))
    return hashes


def row_sources(
    old: Sequence[str], new: Sequence[str], first: int = FIRST_ID, fallback: int = UNKNOWN
) -> npt.NDArray[np.int64]:
    """Where the rows of a new vocabulary are in an old one.

    Args:
        old: External values of the old rows from ``first`` on.
        new: Of the new rows.
        first: Reserved rows, the same in both.
        fallback: Old row that stands for a value the old vocabulary lacks.

    Returns:
        Old row of every new row, (first + len(new),) int64.

    Example:
        >>> row_sources(["a", "b"], ["b", "c"]).tolist()
        [0, 1, 3, 1]
    """
    known = {value: first + i for i, value in enumerate(old)}
    return np.array([*range(first), *(known.get(value, fallback) for value in new)], np.int64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x * _ODD
    x ^= x >> np.uint64(32)
    x *= _ODD
    x ^= x >> np.uint64(29)
    return x


def _hash_text(text: pa.LargeStringArray) -> npt.NDArray[np.uint64]:
    """Polynomial hash of the bytes, modulo 2**64, then mixed."""
    if isinstance(text, pa.ChunkedArray):
        text = text.combine_chunks()
    size = len(text)
    if size == 0:
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + size + 1]
    lengths = np.diff(offsets)
    hashes = lengths.astype(np.uint64)
    data = text.buffers()[2]
    if lengths.sum():
        values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
        with np.errstate(over="ignore"):
            powers = np.cumprod(np.full(int(lengths.max()), _PRIME, np.uint64))
        position = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
        terms = (values.astype(np.uint64) + np.uint64(1)) * powers[position]
        filled = np.flatnonzero(lengths)
        hashes[filled] += np.add.reduceat(terms, offsets[:-1][filled] - offsets[0])
    return _mix(hashes)


class GrowingMap:
    """Values → codes 0, 1, 2, … in order of first sight; grows while a log is read."""

    def __init__(self) -> None:
        self._codes: dict[str | int, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, values: pa.Array) -> npt.NDArray[np.int32]:
        """Give every value a code, new ones the next free code.

        Args:
            values: Strings or integers, best without repeats, (n,); a null gets -1.

        Returns:
            Codes, (n,) int32.
        """
        codes = self._codes
        known = codes.setdefault
        return np.fromiter(
            (-1 if v is None else known(v, len(codes)) for v in values.to_pylist()),
            np.int32,
            len(values),
        )

    def encode_column(self, column: pa.Array) -> npt.NDArray[np.int32]:
        """Encode a column with repeats: each different value is looked up once.

        Args:
            column: Plain or dictionary-encoded values, (n,).

        Returns:
            Codes, (n,) int32; -1 for nulls.
        """
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        lookup = np.append(self.encode(column.dictionary), np.int32(-1))
        indices = column.indices
        if indices.null_count:
            indices = pc.fill_null(indices, len(lookup) - 1)
        codes: npt.NDArray[np.int32] = lookup[indices.to_numpy()]
        return codes

    def values(self) -> list[str | int]:
        """All values in code order."""
        return list(self._codes)

    def texts(self) -> list[str]:
        """All values in code order, as text."""
        return [str(v) for v in self._codes]


class IdMap:
    """A frozen vocabulary: known values have ids from 2 on, anything else is ``UNKNOWN``.

    Args:
        values: Different external values, in id order.

    Raises:
        ValueError: If a value appears twice.

    Example:
        >>> ids = IdMap(["a", "b"])
        >>> ids.encode(["b", "x", 7, "a"]).tolist()
        [3, 1, 1, 2]
        >>> ids.decode([2, 1])
        ['a', None]
    """

    def __init__(self, values: Iterable[str]) -> None:
        self.values: tuple[str, ...] = tuple(values)
        self._ids = {value: i + FIRST_ID for i, value in enumerate(self.values)}
        if len(self._ids) != len(self.values):
            seen: set[str] = set()
            twice = next(v for v in self.values if v in seen or seen.add(v))  # type: ignore[func-returns-value]
            raise ValueError(f"values must differ, but {twice!r} appears twice.")

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, values: Sequence[str | int | None]) -> npt.NDArray[np.int64]:
        """Look external values up.

        Args:
            values: Strings, integers or None, (n,).

        Returns:
            Internal ids, (n,) int64; ``UNKNOWN`` where the value is new or None.
        """
        known = self._ids.get
        return np.fromiter((known(str(v), UNKNOWN) for v in values), np.int64, len(values))

    def decode(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> list[str | None]:
        """Turn internal ids back.

        Args:
            ids: Internal ids, (n,).

        Returns:
            External values; None for ``PAD`` and ``UNKNOWN``.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        found: list[str | None] = []
        for i in ids:
            if not 0 <= i < len(self.values) + FIRST_ID:
                raise ValueError(f"id ({i}) must be below {len(self.values) + FIRST_ID}.")
            found.append(self.values[i - FIRST_ID] if i >= FIRST_ID else None)
        return found
