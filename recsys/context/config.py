"""What the model is given to read."""

from dataclasses import dataclass
from typing import Literal

AnchorName = Literal["own", "trending", "category", "neighbours", "query"]
"""Groups of preference anchors: the user's most used items from before the window, what is popular
now everywhere, in the user's recent categories, beside the user's last items, for the query."""

SituationName = Literal["hour", "weekday", "month", "gap", "session", "domain"]
"""What is told of a moment beside the declared situation columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextConfig:
    """Windows, interaction blocks and requests."""

    max_history: int = 200
    """Tokens of a prefix, boundary tokens included; older events are left out."""
    block_by: Literal["none", "session", "domain", "behavior"] = "none"
    """What an interaction block is; each is closed by a boundary token. ``none``: one block."""
    session_gap_s: int = 1800
    """A longer pause than this, in seconds, starts a new session."""
    requests_per_row: int = 8
    """Q: moments of a history at which the reasoner answers in training."""

    anchors: tuple[AnchorName, ...] = ()
    """Groups of preference anchors in the order they are read; the data set must hold them."""
    anchor_length: int = 15
    """Items of a group, at most."""
    anchor_recent: int = 5
    """Last events whose categories and neighbours become anchors."""
    situation: tuple[SituationName, ...] = ("hour", "weekday", "gap")
    candidates: Literal["none", "impressions", "built"] = "none"
    """What the ranking stage trains on: lists that were shown (requests are then the moments they
    were shown), or candidates drawn for each request; ``none`` trains no ranking."""
    group_size: int = 12
    """C: candidates that are ranked together."""
    groups: int = 1
    """G: groups of candidates a request trains on."""

    @property
    def anchor_lengths(self) -> tuple[int, ...]:
        """Items of each group, in the order the groups are read."""
        return (self.anchor_length,) * len(self.anchors)

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.max_history < 1 or self.requests_per_row < 0 or self.session_gap_s < 1:
            raise ValueError(
                f"max_history ({self.max_history}) and session_gap_s ({self.session_gap_s}) must "
                f"be at least 1, requests_per_row ({self.requests_per_row}) at least 0."
            )
        for name in ("anchor_length", "anchor_recent", "group_size", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        for name in ("anchors", "situation"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} ({getattr(self, name)}) must not name anything twice.")
