"""Where the secret key of user pseudonyms is: the flags that jobs share."""

from dataclasses import dataclass
from pathlib import Path

from recsys.privacy.pseudonymise import Pseudonymiser, read_key


@dataclass(frozen=True, kw_only=True)
class Pseudonyms:
    """Where the secret key for user pseudonyms is; none = ids stay as they are."""

    key_file: Path | None = None
    """File that holds the key."""
    key_variable: str | None = None
    """Environment variable that holds the key."""

    def build(self) -> Pseudonymiser | None:
        """Make the pseudonymiser, if a key is named."""
        if self.key_file is None and self.key_variable is None:
            return None
        return Pseudonymiser(read_key(file=self.key_file, variable=self.key_variable))
