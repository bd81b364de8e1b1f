"""What the model is given to read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextConfig:
    """Windows, interaction blocks and requests."""

    max_history: int = 200
    """Tokens of a prefix; older events are left out."""
    block_by: Literal["none", "session", "domain", "behavior"] = "none"
    """What an interaction block is; each is closed by a boundary token. ``none``: one block."""
    session_gap_s: int = 1800
    """A longer pause than this, in seconds, starts a new session."""
    requests_per_row: int = 8
    """Q: moments of a history at which the reasoner answers in training."""

    @property
    def max_events(self) -> int:
        """Events a prefix holds: boundary tokens take room, at worst one an event."""
        return self.max_history if self.block_by == "none" else max(1, self.max_history // 2)

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.max_history < 1 or self.requests_per_row < 0 or self.session_gap_s < 1:
            raise ValueError(
                f"max_history ({self.max_history}) and session_gap_s ({self.session_gap_s}) must "
                f"be at least 1, requests_per_row ({self.requests_per_row}) at least 0."
            )
