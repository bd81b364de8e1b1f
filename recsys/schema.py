"""Column names, declared features and the manifest: what data and model agree on."""

from dataclasses import dataclass, field
from typing import Literal

from recsys.types import FIRST_BEHAVIOR

FORMAT_VERSION = 1
"""Of the prepared data set; a reader refuses any other."""

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
BEHAVIOR = "behavior"
SCORE_COLUMNS = (USER_ID, ITEM_ID, "rank", "score", "source")

FeatureKind = Literal["categorical", "multi_hot", "numeric", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """A declared column beyond the ids: of an item, a user or an event."""

    name: str
    kind: FeatureKind
    rows: int = 0
    """Values of a categorical or multi-hot column, the reserved two included; else 0."""
    width: int = 1
    """Numbers a row: 1 for numeric, the vector's length for text."""
    mean: float = 0.0
    """Of a numeric column over training rows; what is stored is ``(value - mean) / scale``."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check that the sizes suit the kind."""
        if self.kind in ("categorical", "multi_hot") and self.rows < 2:
            raise ValueError(
                f"rows ({self.rows}) of the {self.kind} feature {self.name!r} must be at least 2."
            )
        if self.width < 1:
            raise ValueError(f"width ({self.width}) of feature {self.name!r} must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnSpec:
    """Which columns of the logs stand for what. Defaults are the library's own names."""

    user_id: str = USER_ID
    item_id: str = ITEM_ID
    timestamp: str | None = TIMESTAMP
    """Timestamp column, or integers in seconds, milliseconds, microseconds or nanoseconds."""
    order: str | None = None
    """Integer column that orders a user's events where times are missing; leave-one-out only."""
    behavior: str | None = BEHAVIOR
    """Kind of event; a log without this column has one behavior, ``interaction``."""
    domain: str | None = None
    """Service an event belongs to; items are then keyed by (domain, item_id)."""
    event_features: tuple[str, ...] = ()
    """Further event columns the model reads, such as ``query`` or ``device``."""
    item_features: tuple[str, ...] = ()
    user_features: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSpec:
    """How events are divided into training, validation and test."""

    kind: Literal["time", "leave_one_out"] = "time"
    validation_fraction: float = 0.1
    """Share of all events, by time, between T1 and T2. Used when the times are not given."""
    test_fraction: float = 0.1
    """Share of all events, by time, from T2 on."""
    validation_time: int | None = None
    """T1, seconds since 1970: the first moment of the validation part."""
    test_time: int | None = None
    """T2, seconds since 1970: the first moment of the test part."""
    target: Literal["first", "last", "all"] = "first"
    """Which of a user's events inside a part is the target there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a prepared data set holds and where it came from. Saved as ``manifest.json``."""

    version: int = FORMAT_VERSION
    library: str = ""
    columns: ColumnSpec = field(default_factory=ColumnSpec)
    split: SplitSpec = field(default_factory=SplitSpec)
    validation_time: int | None = None
    """T1 as used, seconds since 1970; None for leave-one-out."""
    test_time: int | None = None
    has_time: bool = True
    """False where an order column stood in for times: the model then reads no clock and no gap."""
    behaviors: tuple[str, ...] = ()
    """Behavior names; the name at index i has the code ``i + FIRST_BEHAVIOR``."""
    funnel: tuple[str, ...] = ()
    """Behaviors that are tasks, weakest first; empty where every event counts alike."""
    target_behavior: str | None = None
    """Only events of this behavior, or of a stronger task, are test targets; None for all."""
    domains: tuple[str, ...] = ()
    """Domain names; index i has the code ``i + FIRST_ID``."""
    item_features: tuple[Feature, ...] = ()
    user_features: tuple[Feature, ...] = ()
    event_features: tuple[Feature, ...] = ()
    num_items: int = 0
    """Rows of ``items.arrow``: the two reserved ones, trained items, then untrained ones."""
    num_trained_items: int = 0
    """Items with an event in the training part; internal ids 2 … num_trained_items + 1."""
    num_coarse: int = 0
    """Coarse codes of items, the two reserved ones included."""
    num_users: int = 0
    num_buckets: int = 1
    rows_in: int = 0
    rows_out: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    """Rows not used, by reason; ``rows_in = rows_out + sum(rejects)``."""
    counts: dict[str, int] = field(default_factory=dict)
    """Events by part and by behavior, users without training events, unknown items, drift."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file of the data set, by relative path."""

    def codes_at_least(self, behavior: str | None) -> tuple[int, ...]:
        """Codes of a behavior and of the funnel's stronger ones.

        Args:
            behavior: Its name; None stands for all behaviors.

        Returns:
            Codes, in the order of the names; those that no event had are left out.

        Example:
            >>> log = Manifest(behaviors=("click", "order", "like"), funnel=("click", "order"))
            >>> log.codes_at_least("click"), log.codes_at_least("like"), log.codes_at_least(None)
            ((3, 4), (5,), (3, 4, 5))
        """
        wanted = self.behaviors if behavior is None else (behavior,)
        if behavior in self.funnel:
            wanted = self.funnel[self.funnel.index(behavior) :]
        return tuple(
            code for code, name in enumerate(self.behaviors, FIRST_BEHAVIOR) if name in wanted
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Retrieval's tasks, weakest first: the funnel up to the declared target."""
        if self.target_behavior in self.funnel:
            return self.funnel[: self.funnel.index(self.target_behavior) + 1]
        return self.funnel
