"""The contract between data and model: frozen dataclasses of tensors.

One batch is B users. Each row is **one shared prefix** (the user's history, padded on the right)
and any number of **requests**, the moments at which the system answers. A request sees the history
before its cut and its own tail of tokens; nothing in the history ever sees a tail.

```
row b   prefix   h1 h2 h3 h4 h5 ·  ·           lengths[b] = 5
        request 0, cut 3: sees h1 h2 h3        and its tail: anchors, situation, reasoning blocks
        request 1, cut 5: sees h1 … h5         and its own tail
```
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from recsys.types import BOUNDARY, PAD


class _Tensors:
    """Move every tensor of a dataclass, nested ones and dictionaries included."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        """Return the same contents on ``device``."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _move(inner, device) for key, inner in value.items()}
    return value.to(device) if isinstance(value, _Tensors) else value


@dataclass(frozen=True, slots=True)
class History(_Tensors):
    """The prefix: a user's events, oldest first, padded on the right.

    A boundary token closes an interaction block: ``item = PAD``, ``behavior = BOUNDARY``.
    """

    item: Tensor
    """Internal item ids, (B, T) int64; ``PAD`` where there is no event."""
    behavior: Tensor
    """Behavior codes, (B, T) int64."""
    timestamp: Tensor
    """Seconds since 1970, or ordinals where the logs have no times, (B, T) int64."""
    gap: Tensor
    """Bucket of the time since the event before, (B, T) int64; 0 = none or unknown."""
    block: Tensor
    """Ordinal of the interaction block, oldest = 1, (B, T) int64; 0 = padding."""
    lengths: Tensor
    """Real tokens of each row, (B,) int64."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Declared event features: codes (B, T) int64 or numbers (B, T) float32."""

    @property
    def is_real(self) -> Tensor:
        """(B, T) bool: True where there is a token."""
        return torch.arange(self.item.shape[1], device=self.item.device) < self.lengths[:, None]

    @property
    def is_event(self) -> Tensor:
        """(B, T) bool: True where the token is an event, not padding and not a boundary."""
        return self.is_real & (self.behavior != BOUNDARY)


@dataclass(frozen=True, slots=True)
class CandidateSet(_Tensors):
    """Candidates of the ranking stage, in groups that never see each other."""

    item: Tensor
    """Internal item ids, (B, Q, G, C) int64: G groups of C; ``PAD`` where a group is short."""
    position: Tensor | None = None
    """Place in the list that was shown, from 1, (B, Q, G, C) int64; 0 = unknown or neutral."""

    def view(self, *shape: int) -> "CandidateSet":
        """The same in other groups."""
        position = None if self.position is None else self.position.view(*shape)
        return CandidateSet(self.item.view(*shape), position)

    def group(self, number: int) -> "CandidateSet":
        """One group of every request, (B, Q, 1, C)."""
        part = slice(number, number + 1)
        position = None if self.position is None else self.position[:, :, part]
        return CandidateSet(self.item[:, :, part], position)


@dataclass(frozen=True, slots=True)
class Requests(_Tensors):
    """The moments at which the system answers, Q a row, padded on the right."""

    cut: Tensor
    """History tokens a request may see: the first ``cut`` of its row, (B, Q) int64."""
    is_real: Tensor
    """(B, Q) bool: False for padding."""
    timestamp: Tensor
    """The moment itself, seconds since 1970, (B, Q) int64."""
    gap: Tensor
    """Bucket of the time since the last visible event, (B, Q) int64; 0 = none or unknown."""
    situation: dict[str, Tensor] = field(default_factory=dict)
    """Codes (B, Q) int64 or numbers (B, Q) float32 of the moment: hour, weekday, device, …"""
    anchor_item: Tensor | None = None
    """Preference anchors, group after group, best first inside a group, (B, Q, A) int64; ``PAD``
    where a group is short. The groups' lengths are the model's ``data.anchor_lengths``."""
    candidates: CandidateSet | None = None


@dataclass(frozen=True, slots=True)
class ContextBatch(_Tensors):
    """Everything the model reads for B users."""

    history: History
    requests: Requests
    user: dict[str, Tensor] = field(default_factory=dict)
    """Declared user features: (B,) int64, (B,) float32, or (B, L) int64 lists, ``PAD``-padded."""

    @property
    def num_rows(self) -> int:
        """B, the number of users."""
        return self.history.item.shape[0]


@dataclass(frozen=True, slots=True)
class Labels(_Tensors):
    """What the losses compare with; the model never sees them."""

    next_item: Tensor
    """Item after each history token, (B, T) int64; ``PAD`` where none is supervised."""
    task_item: Tensor
    """Next item of each behavior of the funnel after a cut, weakest first, (B, Q, S) int64;
    ``PAD`` = none. The retrieval's tasks are the first of them, up to the declared target."""
    candidate_level: Tensor | None = None
    """What became of each candidate, (B, Q, G, C) int64: 0 = nothing, s + 1 = task s, the strongest
    that was reached. Labels nest, so task s is positive where the level is above s."""

    @property
    def num_targets(self) -> int:
        """Supervised history positions, the unit of every throughput figure."""
        return int((self.next_item != PAD).sum())


@dataclass(frozen=True, slots=True)
class EvaluationBatch(_Tensors):
    """One request a row and the answer the log gives."""

    context: ContextBatch
    target: Tensor
    """The item that came next, (B,) int64; ``UNKNOWN`` where it is not in the catalogue."""
    seen: Tensor
    """Items of the user's whole history before the request, (B, L) int64, padded with ``PAD``."""
    user_index: Tensor
    """Row of the user in the data set, (B,) int64."""
    history_length: Tensor
    """Events before the request, window or not, (B,) int64."""
