"""Keyed pseudonyms for user ids: stable with the key, meaningless without it.

The key comes from a file or an environment variable and is never written anywhere: whoever holds a
prepared data set or a model cannot turn pseudonyms back, or test whether an id is in it.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LEAST_KEY_BYTES = 16
_MOST_KEY_BYTES = 64  # BLAKE2b takes no longer key


@dataclass(frozen=True, slots=True)
class Pseudonymiser:
    """Turns user ids into keyed BLAKE2b hashes.

    The same key gives the same pseudonym in every run, so histories and scores still join.

    Raises:
        ValueError: If the key is too short or too long.

    Example:
        >>> hide = Pseudonymiser(b"sixteen bytes at least")
        >>> hide(["ann"]) == hide(["ann"]), hide(["ann"]) == hide(["bob"])
        (True, False)
    """

    key: bytes = field(repr=False)
    """Secret, 16 to 64 bytes."""
    digest_bytes: int = 16
    """Length of a pseudonym; 16 bytes are 32 hexadecimal digits."""

    def __post_init__(self) -> None:
        """Check the key's length, without showing it."""
        if not _LEAST_KEY_BYTES <= len(self.key) <= _MOST_KEY_BYTES:
            raise ValueError(
                f"key must have {_LEAST_KEY_BYTES} to {_MOST_KEY_BYTES} bytes, not {len(self.key)}."
            )
        if not 8 <= self.digest_bytes <= 64:
            raise ValueError(f"digest_bytes ({self.digest_bytes}) must be between 8 and 64.")

    def __call__(self, ids: Sequence[str]) -> list[str]:
        """Return the pseudonym of each id.

        Args:
            ids: External user ids; best without repeats, for speed.

        Returns:
            Hexadecimal digits, in the same order.
        """
        keyed = hashlib.blake2b(key=self.key, digest_size=self.digest_bytes)
        found = []
        for name in ids:
            hasher = keyed.copy()
            hasher.update(name.encode("utf-8", "surrogatepass"))
            found.append(hasher.hexdigest())
        return found


def read_key(*, file: Path | None = None, variable: str | None = None) -> bytes:
    """Read the secret key.

    Args:
        file: A file that holds it; a final line break is not part of it.
        variable: Name of an environment variable that holds it.

    Returns:
        The key.

    Raises:
        ValueError: Unless exactly one place is named and holds a key.
    """
    if (file is None) == (variable is None):
        raise ValueError("Name exactly one place of the key: a file or an environment variable.")
    if file is not None:
        try:
            return file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ValueError(f"The key file {file} cannot be read: {error.strerror}.") from None
    value = os.environ.get(variable or "")
    if not value:
        raise ValueError(f"The environment variable {variable} with the key is empty or not set.")
    return value.encode()
