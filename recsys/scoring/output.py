"""The output folder of a scoring job: one writer, whole shards, an identity that must not change.

```
part-00000.parquet …   one a bucket of users, whole or not there
_manifest.json         ScoreReport; written last but one
_SUCCESS               written last, empty
_rejects/              rows of the events that were not used, with file, row number and reason
.work/                 encoded histories and the state of a job that has not finished
.lock                  held while a job runs; a killed job lets go of it
```

Parquet readers skip names that start with ``_`` or ``.``, so the folder reads as one table.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.config import read_json, write_json

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
REJECTS = "_rejects"
_WORK = ".work"
_LOCK = ".lock"

Identity = dict[str, Any]
"""What decides every row of the output: arguments, inputs, model. Plain JSON values."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Where the scores go."""

    path: Path

    @property
    def work(self) -> Path:
        """Scratch space of an unfinished job."""
        return self.path / _WORK

    @property
    def encoded(self) -> Path:
        """Histories of the events, whole or not there."""
        return self.work / "encoded"

    @property
    def is_complete(self) -> bool:
        """Whether a job has finished here."""
        return (self.path / SUCCESS).exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other jobs out.

        Raises:
            ValueError: If another process is writing here, or the folder holds something else.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        strange = [p.name for p in self.path.iterdir() if not _is_ours(p.name)]
        if strange:
            raise ValueError(
                f"{self.path} holds something else ({', '.join(sorted(strange)[:3])}); choose "
                "another folder."
            )
        with (self.path / _LOCK).open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                raise ValueError(
                    f"Another scoring job (process {lock.read().strip() or 'unknown'}) is writing "
                    f"to {self.path}; wait for it or choose another folder."
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield  # closing the file lets go of the lock

    def begin(self, identity: Identity, *, overwrite: bool) -> bool:
        """Start, resume or refuse.

        Args:
            identity: Of the job about to run.
            overwrite: Start afresh whatever is there.

        Returns:
            True if an earlier run of this very job is to be continued, finished or not.

        Raises:
            ValueError: If the folder holds the output of another job and ``overwrite`` is off.
        """
        known: Identity | None = None
        if self.is_complete:
            known = read_json(self.path / MANIFEST)["identity"]
        elif (self.work / "state.json").exists():
            known = read_json(self.work / "state.json")
        if known == identity and not overwrite:
            return True
        if known is not None and not overwrite and any(self.path.glob("part-*")):
            raise ValueError(
                f"{self.path} holds the output of another job ({_difference(known, identity)}); "
                "pass --overwrite to start afresh, or choose another folder."
            )
        self._clear()
        self.work.mkdir()
        write_json(self.work / "state.json", identity)
        return False

    def _clear(self) -> None:
        (self.path / SUCCESS).unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def shard(self, bucket: int) -> Path:
        """The output file of a bucket."""
        return self.path / f"part-{bucket:05d}.parquet"

    def unfinished(self, bucket: int) -> Path:
        """Where the output file of a bucket is written before it is renamed."""
        return self.path / f".part-{bucket:05d}.parquet.tmp"

    def finished(self, bucket: int) -> dict[str, int] | None:
        """Counts of a bucket that is done, or None."""
        counts = self._counts(bucket)
        if not self.shard(bucket).exists() or not counts.exists():
            return None
        found: dict[str, int] = read_json(counts)
        return found

    def commit(self, bucket: int, counts: dict[str, int]) -> None:
        """Declare a bucket done: its counts first, then its file under its final name."""
        with self.unfinished(bucket).open("rb") as shard:
            os.fsync(shard.fileno())  # a name that outlives a power cut must have its rows
        self._counts(bucket).parent.mkdir(exist_ok=True)
        write_json(self._counts(bucket), counts)
        os.replace(self.unfinished(bucket), self.shard(bucket))

    def _counts(self, bucket: int) -> Path:
        return self.work / "done" / f"{bucket:05d}.json"

    def finish(self, report: Any) -> None:
        """Write the manifest and the success marker, keep the rejects, drop the scratch space.

        Args:
            report: A dataclass with a field ``identity``.
        """
        if (self.encoded / "rejects").exists():
            shutil.rmtree(self.path / REJECTS, ignore_errors=True)
            os.replace(self.encoded / "rejects", self.path / REJECTS)
        write_json(self.path / MANIFEST, report)
        (self.path / SUCCESS).touch()
        shutil.rmtree(self.work, ignore_errors=True)


def _is_ours(name: str) -> bool:
    return name in (MANIFEST, SUCCESS, REJECTS, _WORK, _LOCK, f".{MANIFEST}.tmp") or name.lstrip(
        "."
    ).startswith("part-")


def _difference(old: Identity, new: Identity) -> str:
    """Say in a few words what two identities differ in."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    told = []
    for key in changed[:3]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, list | dict) or isinstance(after, list | dict):
            told.append(f"{key} changed")
        else:
            told.append(f"{key} was {before!r}, is {after!r}")
    return "; ".join(told)
