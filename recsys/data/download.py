"""One file over HTTP: progress, resume where it stopped, checksum, atomic."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def fetch(url: str, target: Path, *, checksum: str | None = None, timeout_s: float = 60) -> Path:
    """Download a file, or finish a download that broke off.

    The bytes go to ``<target>.part``; a later call asks the server for the rest only. The file gets
    its name when it is complete and its checksum is right.

    Args:
        url: ``http`` or ``https``.
        target: Where the file goes; its folder is made.
        checksum: ``md5:…`` or ``sha256:…``; None = not known.
        timeout_s: Of one network operation, in seconds.

    Returns:
        ``target``. A file that is there already, with the right checksum, is left alone.

    Raises:
        ValueError: If the address is not HTTP, cannot be reached, breaks off, or if the checksum
            is wrong; the message says what to do.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url ({url!r}) must begin with http:// or https://.")
    if target.exists():
        return verify(target, checksum)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.tag")
    try:
        _receive(url, part, tag, timeout_s)
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise ValueError(
            f"{url} could not be downloaded: {getattr(error, 'reason', None) or error}. Run again "
            f"to go on where it stopped, or, without a network, fetch it elsewhere and save it as "
            f"{target}."
        ) from None
    try:
        verify(part, checksum)
    except ValueError:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise
    os.replace(part, target)
    tag.unlink(missing_ok=True)
    return target


def verify(path: Path, checksum: str | None) -> Path:
    """Compare a file with its published checksum.

    Args:
        path: The file.
        checksum: ``md5:…`` or ``sha256:…``; None = nothing to compare with.

    Returns:
        ``path``.

    Raises:
        ValueError: If the checksum is of another kind or does not match.
    """
    if checksum is None:
        return path
    kind, _, expected = checksum.partition(":")
    if kind not in ("md5", "sha256") or not expected:
        raise ValueError(f"checksum ({checksum!r}) must look like md5:… or sha256:….")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if found.hexdigest() != expected.lower():
        raise ValueError(
            f"{path} has the {kind} checksum {found.hexdigest()}, but {expected} was published: "
            "the file is damaged or another version. Delete it and download it again."
        )
    return path


def _receive(url: str, part: Path, tag: Path, timeout_s: float) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag.exists():  # resume only if it is still the same file
            request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        # 416: nothing is left to send. The checksum, or the size below, says if that is right.
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return
        if error.code == 416:
            part.unlink()
        raise
    with response:
        rest = response.status == 206
        if rest and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError(f"the server sent another range than bytes {have}-")
        have = have if rest else 0
        if version := response.headers.get("ETag") or response.headers.get("Last-Modified"):
            tag.write_text(version, encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("ab" if rest else "wb") as file,
            Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ):
            task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=have)
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))
        size = part.stat().st_size
        if total is not None and size != total:
            raise OSError(f"the connection closed after {size} of {total} bytes")
