"""What is tested against what: printed with every result, because it decides the numbers."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from recsys.batch import EvaluationBatch
from recsys.schema import Manifest
from recsys.types import FIRST_ID


@runtime_checkable
class Scorer(Protocol):
    """Anything that gives every catalogue item a score for every request."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def heads(self) -> tuple[str, ...]:
        """Its answers, the one that counts last; a plain scorer has one."""
        ...

    def score(self, batch: EvaluationBatch, start: int, stop: int) -> dict[str, Tensor]:
        """Score the items ``start`` … ``stop - 1`` for every request.

        Args:
            batch: B requests; the target is there for the evaluation, not for the scorer.
            start: First internal item id.
            stop: One past the last.

        Returns:
            Head → (B, stop - start) floating point, higher is better, no NaN; -inf = never
            recommended. The caller overwrites these tensors and drops them before the next call.
        """
        ...


@runtime_checkable
class TargetScorer(Protocol):
    """A scorer that can also score one item a request, which saves a pass over the catalogue."""

    def score_items(self, batch: EvaluationBatch, items: Tensor) -> dict[str, Tensor]:
        """Score one item for each request.

        Args:
            batch: B requests.
            items: Internal ids, (B,) int64.

        Returns:
            Head → (B,), equal to ``score``'s figures up to rounding.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationProtocol:
    """Who is tested, against what, and what is filtered. Only reports of one protocol compare."""

    part: Literal["validation", "test"] = "test"
    split: str = "time"
    """How the events were divided: ``time`` or ``leave_one_out``."""
    target: str = "first"
    """Which of a user's events of the part is asked for: first, last, or all, one request each."""
    target_behavior: str | None = None
    """Only events of this behavior or a stronger one are asked for; None for all."""
    candidates: Literal["trained", "all"] = "trained"
    """Items that compete: those with a training event, or the whole catalogue."""
    num_candidates: int = 0
    filter_seen: bool = True
    """Whether items of the user's whole history before the request are taken out."""
    num_users: int = 0
    """Users tested."""

    @staticmethod
    def of(
        manifest: Manifest,
        *,
        part: Literal["validation", "test"],
        candidates: Literal["trained", "all"],
        filter_seen: bool,
        num_users: int,
    ) -> "EvaluationProtocol":
        """Describe an evaluation on a prepared data set.

        Args:
            manifest: Of the data set.
            part: Which part is asked for.
            candidates: Which items compete.
            filter_seen: Whether seen items are taken out.
            num_users: Users tested.

        Returns:
            The protocol.
        """
        first, stop = candidate_range(
            candidates, num_trained=manifest.num_trained_items, num_items=manifest.num_items
        )
        return EvaluationProtocol(
            part=part,
            split=manifest.split.kind,
            target=manifest.split.target if manifest.split.kind == "time" else "last",
            target_behavior=manifest.target_behavior,
            candidates=candidates,
            num_candidates=stop - first,
            filter_seen=filter_seen,
            num_users=num_users,
        )

    def sentences(self) -> str:
        """Say it in words."""
        asked = {
            "first": "the first event of each user",
            "last": "the last event of each user",
            "all": "every event of each user, averaged within a user first",
        }
        kind = f" of behavior {self.target_behavior!r} or stronger" if self.target_behavior else ""
        split = {"time": "a global time split", "leave_one_out": "a leave-one-out split"}
        which = {"trained": "every item with a training event", "all": "the whole catalogue"}
        seen = (
            "Items of the user's own history are taken out; a target among them counts as a miss."
            if self.filter_seen
            else "Items of the user's own history stay in and may be recommended again."
        )
        where = split.get(self.split, self.split)
        return (
            f"Target: {asked.get(self.target, self.target)}{kind} in the {self.part} part of "
            f"{where}, for {self.num_users:,} users. It is ranked against "
            f"{which[self.candidates]} ({self.num_candidates:,} items), none sampled. {seen} Ties "
            "count against the target. A target outside the catalogue is a miss and stays in the "
            "denominator. With one target a request, recall@k and hit_rate@k are the same number."
        )


def candidate_range(
    candidates: Literal["trained", "all"], *, num_trained: int, num_items: int
) -> tuple[int, int]:
    """First internal id that competes, and one past the last.

    Args:
        candidates: ``trained`` or ``all``.
        num_trained: Items with a training event; they come first.
        num_items: N, the reserved rows included.

    Returns:
        Bounds of a contiguous range of ids.

    Raises:
        ValueError: If no item competes.
    """
    stop = FIRST_ID + num_trained if candidates == "trained" else num_items
    if stop <= FIRST_ID:
        raise ValueError(f"No item can be ranked: the catalogue has {num_trained} trained items.")
    return FIRST_ID, stop
