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
SKIP = "skip"
"""Behavior of items that were shown and passed over, where ``negative_feedback`` is asked for."""
SCORE_COLUMNS = (USER_ID, ITEM_ID, "rank", "score", "source")

FeatureKind = Literal["categorical", "multi_hot", "numeric", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """A declared column beyond the ids: of an item, a user or an event."""

    name: str
    kind: FeatureKind
    rows: int = 0
    """Values of a categorical or multi-hot column, or of those that have text vectors, the reserved
    two included; else 0."""
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
    situation: tuple[str, ...] = ()
    """Those of ``event_features`` that are known when the system must answer, before the item is:
    a query, a device. The situation token reads them."""
    item_features: tuple[str, ...] = ()
    user_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the situation is part of what events tell."""
        for name in self.situation:
            if name not in self.event_features:
                raise ValueError(
                    f"situation ({name!r}) must be one of event_features "
                    f"{list(self.event_features)}: its vocabulary is fitted on the events."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpressionSpec:
    """Which columns of a log of shown lists stand for what.

    The log has a row a shown item (``request_id`` and ``item_id``) or a row a list (``item_ids``).
    Labels are columns named as the funnel's behaviors, true where the item got that far; of a row a
    list they are lists too. Domain and situation columns are named as in the events.
    """

    request_id: str = "request_id"
    """Tells which rows are one list; not read where a row is a list."""
    user_id: str = USER_ID
    timestamp: str = TIMESTAMP
    """When the list was shown; of its rows the earliest counts."""
    item_id: str = ITEM_ID
    item_ids: str = "item_ids"
    """List of the items shown, in that order; a log that has it is a row a list."""
    clicked_item: str = "clicked_item"
    """The item of a list that was clicked, if any: a label where lists have no label columns."""
    position: str = "position"
    """Place of a shown item in its list, from 0 or from 1; optional, a list tells it itself."""


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
    event_texts: tuple[Feature, ...] = ()
    """Text vectors of the values of categorical event features, by the features' own names: of
    kind ``text``, one vector a code (``rows``), in ``events.<name>.npy``."""
    negative_feedback: bool = False
    """Whether items shown and passed over are events of behavior ``SKIP``: read, never targets."""
    num_items: int = 0
    """Rows of ``items.arrow``: the two reserved ones, trained items, then untrained ones."""
    num_trained_items: int = 0
    """Items with an event in the training part; internal ids 2 … num_trained_items + 1."""
    num_coarse: int = 0
    """Coarse codes of items, the two reserved ones included."""
    num_users: int = 0
    num_impressions: int = 0
    """Lists that were shown, in ``impressions/``."""
    num_buckets: int = 1
    rows_in: int = 0
    rows_out: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    """Rows not used, by reason; ``rows_in = rows_out + sum(rejects)``."""
    counts: dict[str, int] = field(default_factory=dict)
    """Events by part and by behavior, users without training events, unknown items, drift; of
    impressions the rows in, out and rejected, by reason."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file of the data set, by relative path."""

    def codes_at_least(self, behavior: str | None) -> tuple[int, ...]:
        """Codes of a behavior and of the funnel's stronger ones.

        Args:
            behavior: Its name; None stands for all that may be a target: all but negative feedback.

        Returns:
            Codes, in the order of the names; those that no event had are left out.

        Example:
            >>> log = Manifest(behaviors=("click", "order", "like"), funnel=("click", "order"))
            >>> log.codes_at_least("click"), log.codes_at_least("like"), log.codes_at_least(None)
            ((3, 4), (5,), (3, 4, 5))
        """
        wanted: tuple[str, ...] = () if behavior is None else (behavior,)
        if behavior is None:
            wanted = tuple(b for b in self.behaviors if b != SKIP or not self.negative_feedback)
        elif behavior in self.funnel:
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
