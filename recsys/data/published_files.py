"""Reading published files, wherever they lie: plain, gzipped or inside an archive."""

import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq


def read_small(
    source: Path,
    name: str,
    columns: list[str],
    *,
    delimiter: str,
    encoding: str = "utf-8",
    strings: tuple[str, ...] = (),
) -> pa.Table:
    """Read a small file without header or quotes.

    Args:
        source: Folder or archive.
        name: Published name of the file.
        columns: Names to give its columns.
        delimiter: One or more characters.
        encoding: Of the text.
        strings: Columns that stay strings.

    Returns:
        The table.

    Raises:
        ValueError: If the file is missing or has other columns.
    """
    with open_published(source, name) as file:
        text = file.read().decode(encoding).replace(delimiter, "\x1f")
    try:
        return pyarrow.csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pyarrow.csv.ReadOptions(column_names=columns),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={key: pa.string() for key in strings}
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name} must have the columns {columns}: {error}.") from None


def read_batches(
    source: Path, name: str, columns: list[str], *, header: bool = True
) -> Iterator[pa.Table]:
    """Read a CSV file piece by piece.

    Args:
        source: Folder or archive.
        name: Published name of the file.
        columns: Columns wanted, or, without a header, all columns in order.
        header: Whether the first line names the columns.

    Yields:
        Tables of some 16 MiB of text each.

    Raises:
        ValueError: If the file is missing or has other columns.
    """
    options = pyarrow.csv.ReadOptions(column_names=None if header else columns, block_size=1 << 24)
    # Types are fixed: guessing from the first piece would fail on a later one.
    kinds = {key: pa.int64() for key in columns}
    kinds |= {
        key: pa.string() for key in ("event", "behavior", "property", "value") if key in kinds
    }
    kinds |= {"rating": pa.float64()} if "rating" in kinds else {}
    convert = pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=columns)
    with open_published(source, name) as file:
        try:
            reader = pyarrow.csv.open_csv(file, read_options=options, convert_options=convert)
            for batch in reader:
                yield pa.Table.from_batches([batch])
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise ValueError(f"{name} must have the columns {columns}: {error}.") from None


def convert_batches(
    source: Path,
    name: str,
    target: Path,
    columns: list[str],
    change: Callable[[pa.Table], pa.Table],
    *,
    header: bool = True,
) -> tuple[int, int]:
    """Convert a CSV file to parquet piece by piece, atomically.

    Args:
        source: Folder or archive.
        name: Published name of the file.
        target: Parquet file to write.
        columns: Columns wanted, or, without a header, all columns in order.
        change: Makes our columns of a piece.
        header: Whether the first line names the columns.

    Returns:
        Rows read, rows written.

    Raises:
        ValueError: If the file is missing, empty or has other columns.
    """
    read = kept = 0
    writer = None
    temporary = target.with_name(f".{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        for batch in read_batches(source, name, columns, header=header):
            table = change(batch)
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
            read, kept = read + batch.num_rows, kept + table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ValueError(f"{name} holds no rows.")
    os.replace(temporary, target)
    return read, kept


def find_published(source: Path, name: str) -> tuple[Path, str | None] | None:
    """Find a published file: as it is, gzipped, or inside a zip archive.

    Args:
        source: Folder or archive.
        name: Its published name.

    Returns:
        Its path and the member of the archive, if it lies in one; None if it is nowhere.
    """
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for wanted in (name, f"{name}.gz"):
        for path in paths:
            if path.name == wanted:
                return path, None
    for path in paths:
        if path.suffix == ".zip" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in sorted(archive.namelist()):
                    if member.rpartition("/")[2] == name and not member.startswith("__MACOSX"):
                        return path, member
    return None


@contextmanager
def open_published(source: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a published file for reading, unpacked.

    Args:
        source: Folder or archive.
        name: Its published name.

    Yields:
        The file.

    Raises:
        ValueError: If it is not there.
    """
    place = find_published(source, name)
    if place is None:
        raise ValueError(
            f"{source} must hold {name}, as a file, as {name}.gz or inside a zip file."
        )
    path, member = place
    if member is not None:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inner:
            yield inner
    elif path.suffix == ".gz":
        with gzip.open(path) as unpacked:
            yield cast(IO[bytes], unpacked)
    else:
        with path.open("rb") as plain:
            yield plain


def need_columns(found: Iterable[str], wanted: list[str], name: str) -> None:
    """Refuse a table that lacks a column.

    Args:
        found: Columns there are.
        wanted: Columns it must have.
        name: The file, for the message.

    Raises:
        ValueError: If one is missing.
    """
    missing = [column for column in wanted if column not in found]
    if missing:
        raise ValueError(f"{name} lacks the columns {missing}; it has {list(found)}.")


def write_table(table: pa.Table, path: Path) -> None:
    """Write a parquet file atomically, its folder made.

    Args:
        table: What to write.
        path: Where.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)
