"""What a scoring job is given: lists of items, and the identity of everything it reads."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from recsys.cascade.frames import Item
from recsys.data.files import LogFile, list_files
from recsys.privacy.pseudonymise import Pseudonymiser
from recsys.schema import ColumnSpec
from recsys.scoring.output import Identity

_PROBE = "recsys scoring job"
"""Hidden with the key of the pseudonyms, so that another key is another job; says nothing of it."""


def read_items(paths: Sequence[str], columns: ColumnSpec) -> list[Item] | None:
    """Read a list of items.

    Args:
        paths: Parquet files or folders; none is no list.
        columns: Names of the item id and, where items are keyed by it, the domain.

    Returns:
        External ids in the order of the files; None where no file is named.

    Raises:
        ValueError: If a file cannot be read or lacks a column.
    """
    if not paths:
        return None
    names = [name for name in (columns.domain, columns.item_id) if name is not None]
    found: list[Item] = []
    for file in list_files(paths):
        missing = [name for name in names if name not in file.schema.names]
        if missing:
            raise ValueError(
                f"{file.name} lists items by {names}, but has no {missing}; it has "
                f"{file.schema.names}."
            )
        with file.open() as parquet:
            table = parquet.read(columns=names)
        parts = [table[name].cast(pa.string()).to_pylist() for name in names]
        found += list(zip(*parts, strict=True)) if len(parts) > 1 else parts[0]
    return found


def identity_of(
    settings: Identity,
    *,
    model: Path,
    files: dict[str, Sequence[LogFile]],
    pseudonymise: Pseudonymiser | None,
) -> Identity:
    """Everything that decides the rows of a job.

    Args:
        settings: Its arguments, as JSON values.
        model: Folder of the model.
        files: What is read, by argument.
        pseudonymise: Of the users' ids, if any; its key is not told.

    Returns:
        Plain JSON values.
    """
    return {
        **settings,
        **{name: [_fingerprint(file) for file in some] for name, some in files.items()},
        "model_sha256": folder_hash(model),
        "pseudonyms": pseudonymise([_PROBE])[0] if pseudonymise is not None else None,
        "library": f"recsys {importlib.metadata.version('recsys')}",
    }


def _fingerprint(file: LogFile) -> list[str | int | None]:
    info = file.filesystem.get_file_info(file.path)
    return [file.name, info.size, info.mtime_ns]


def folder_hash(folder: Path) -> str:
    """Hash a model: names and contents of all its files, SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
