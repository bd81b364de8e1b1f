"""Find the parquet files of a log: folders, single files, URLs; check each before any is read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

_LOG = logging.getLogger(__name__)
_SUFFIXES = (".parquet", ".parq", ".pq")

OnBadFile = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class LogFile:
    """One parquet file whose footer could be read."""

    name: str
    """As named in messages and rejects: below the folder given, never an absolute path."""
    path: str
    filesystem: pa.fs.FileSystem
    rows: int
    schema: pa.Schema

    def open(self, dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        """Open for reading; columns in ``dictionary`` come dictionary-encoded.

        Args:
            dictionary: Names of string columns.

        Returns:
            The open file; local ones are memory-mapped, so that row groups cost no memory.
        """
        if isinstance(self.filesystem, pa.fs.LocalFileSystem):
            return pq.ParquetFile(self.path, memory_map=True, read_dictionary=list(dictionary))
        source = self.filesystem.open_input_file(self.path)
        return pq.ParquetFile(source, read_dictionary=list(dictionary), pre_buffer=False)


def resolve(path: str) -> tuple[pa.fs.FileSystem, str]:
    """Turn a path or URL into a filesystem and a path on it.

    Args:
        path: Local path, a URL that pyarrow knows (``s3://``, ``gs://``, ``file://`` …), or any
            that fsspec knows (``memory://``, ``abfs://`` …).

    Returns:
        The filesystem and the path below it.

    Raises:
        ValueError: If no filesystem is known for the URL.
    """
    if "://" not in path:
        return pa.fs.LocalFileSystem(), path
    try:
        filesystem, inner = pa.fs.FileSystem.from_uri(path)
        return filesystem, inner
    except pa.ArrowInvalid:
        pass
    import fsspec  # only where pyarrow has no filesystem of its own

    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path} cannot be opened: {error}.") from None
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs)), inner


def list_files(paths: Sequence[str], *, on_bad_file: OnBadFile = "stop") -> list[LogFile]:
    """List every parquet file under the given paths, sorted by name, footers read.

    Args:
        paths: Files and folders, local or URLs. Folders are read with all below them; names that
            start with ``.`` or ``_`` are left out.
        on_bad_file: ``"skip"`` warns of an unreadable file and goes on; ``"stop"`` raises.

    Returns:
        The readable files, sorted by path.

    Raises:
        ValueError: If a path does not exist, a folder holds no parquet file, a file appears twice,
            or a file is not readable parquet.
    """
    found: dict[str, tuple[str, pa.fs.FileSystem]] = {}
    for given in paths:
        filesystem, path = resolve(str(given))
        for name, inner in _expand(filesystem, path, str(given)):
            if inner in found:
                raise ValueError(f"{name} is given twice; its rows would count double.")
            found[inner] = (name, filesystem)
    files = []
    for path in sorted(found):
        name, filesystem = found[path]
        try:
            files.append(_inspect(name, path, filesystem))
        except ValueError as error:
            if on_bad_file == "stop":
                raise
            _LOG.warning("Skipped: %s", error)
    if not files:
        raise ValueError(f"None of the files under {list(paths)} could be read.")
    return files


def _expand(filesystem: pa.fs.FileSystem, path: str, given: str) -> list[tuple[str, str]]:
    info = filesystem.get_file_info(path)
    if info.type == pa.fs.FileType.NotFound:
        raise ValueError(f"{given} does not exist.")
    base = info.path.rstrip("/").rsplit("/", 1)[-1]
    if info.type == pa.fs.FileType.File:
        return [(base, info.path)]
    below = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    inner = []
    for entry in below:
        relative = entry.path[len(info.path.rstrip("/")) :].lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if entry.is_file and not hidden and entry.path.lower().endswith(_SUFFIXES):
            inner.append((f"{base}/{relative}", entry.path))
    if not inner:
        raise ValueError(f"{given} holds no parquet file (names ending in .parquet, .parq or .pq).")
    return inner


def _inspect(name: str, path: str, filesystem: pa.fs.FileSystem) -> LogFile:
    try:
        with LogFile(name, path, filesystem, 0, pa.schema([])).open() as parquet:
            return LogFile(name, path, filesystem, parquet.metadata.num_rows, parquet.schema_arrow)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{name} is not a readable parquet file (truncated, or another format): {reason}. "
            'Write it again, or pass on_bad_file="skip" to go on without it.'
        ) from None
