"""Windows of users' histories as the model's prefix: events, time gaps, interaction blocks."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.batch import History
from recsys.context.config import ContextConfig
from recsys.data.dataset import Histories
from recsys.types import BOUNDARY, NUM_GAPS, PAD


def gap_bucket(seconds: Tensor) -> Tensor:
    """Bucket time gaps by powers of two.

    Args:
        seconds: Gaps, any shape, int64; negative ones count as 0.

    Returns:
        ``1 + floor(log2(seconds + 1))``, at most ``NUM_GAPS - 1``, int64.

    Example:
        >>> gap_bucket(torch.tensor([0, 1, 60, 86_400])).tolist()
        [1, 2, 6, 17]
    """
    return (1 + (seconds.clamp(min=0).double() + 1).log2().long()).clamp(max=NUM_GAPS - 1)


@dataclass(frozen=True, slots=True)
class Window:
    """Which events of which users a batch reads, as positions in a bucket's flat columns."""

    start: Tensor
    """First event, (B,) int64."""
    lengths: Tensor
    """Events, (B,) int64."""

    def take(self, rows: Tensor) -> "Window":
        """Some of the windows."""
        return Window(self.start[rows], self.lengths[rows])


def read_window(bucket: Histories, window: Window, *, has_time: bool) -> tuple[History, Tensor]:
    """Gather windows of one bucket, padded on the right.

    Args:
        bucket: Where the events are.
        window: Which events to read.
        has_time: Whether the timestamps are times, so that gaps between them mean something.

    Returns:
        The history, in one interaction block, and the domain of every event, (B, T) int64.
    """
    width = max(1, int(window.lengths.max())) if len(window.lengths) else 1
    column = torch.arange(width)
    is_real = column < window.lengths[:, None]
    at = torch.where(is_real, window.start[:, None] + column, 0)

    def gather(name: str) -> Tensor:
        values = bucket.events[name].values
        taken = values[at] if len(values) else torch.zeros(at.shape, dtype=values.dtype)
        return torch.where(is_real, taken, torch.zeros((), dtype=values.dtype))

    timestamp = gather("timestamp").long()
    gap = torch.zeros_like(timestamp)
    if has_time and width > 1:
        gap[:, 1:] = gap_bucket(timestamp[:, 1:] - timestamp[:, :-1])
        gap = torch.where(is_real, gap, 0)
    features = {
        name.removeprefix("event."): _as_code_or_number(gather(name))
        for name in bucket.events
        if name.startswith("event.")
    }
    domain = gather("domain").long() if "domain" in bucket.events else torch.zeros_like(timestamp)
    history = History(
        item=gather("item").long(),
        behavior=gather("behavior").long(),
        timestamp=timestamp,
        gap=gap,
        block=is_real.long(),
        lengths=window.lengths,
        features=features,
    )
    return history, domain


def _as_code_or_number(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values.long()


def session_starts(timestamp: Tensor, session_gap_s: int) -> Tensor:
    """Tell which events come after a pause that opens a new session.

    Args:
        timestamp: Chronological along the last dimension, seconds, (..., T) int64.
        session_gap_s: The longest pause inside a session, seconds.

    Returns:
        (..., T) bool, False for the first event.
    """
    starts = torch.zeros(timestamp.shape, dtype=torch.bool)
    starts[..., 1:] = timestamp[..., 1:] - timestamp[..., :-1] > session_gap_s
    return starts


def _block_starts(
    timestamp: Tensor, behavior: Tensor, domain: Tensor, config: ContextConfig
) -> Tensor:
    """Which events open a new interaction block, (..., T) bool, False for the first event."""
    if config.block_by == "session":
        return session_starts(timestamp, config.session_gap_s)
    starts = torch.zeros(timestamp.shape, dtype=torch.bool)
    if config.block_by != "none":
        kind = domain if config.block_by == "domain" else behavior
        starts[..., 1:] = kind[..., 1:] != kind[..., :-1]
    return starts


def token_places(bucket: Histories, config: ContextConfig) -> Tensor:
    """Count tokens, boundaries included, along the events of a bucket.

    A window of a user's events ``i`` to ``j`` takes ``places[j] - places[i] + 1`` tokens, so that
    windows can be cut by the tokens they take and not by the most they could take.

    Args:
        bucket: The users.
        config: What a block is.

    Returns:
        A place for every event of the bucket's flat columns and one for their end, ascending,
        (E + 1,) int64.
    """
    events = bucket.events
    behavior = events["behavior"].values
    domain = events["domain"].values if "domain" in events else torch.zeros_like(behavior)
    starts = _block_starts(events["timestamp"].values, behavior, domain, config)
    starts = F.pad(starts, (0, 1))
    starts[bucket.offsets] = False
    return torch.arange(len(starts)) + starts.cumsum(dim=0)


def longest_windows(
    bucket: Histories, config: ContextConfig, row: Tensor, place: Tensor
) -> tuple[Window, Tensor]:
    """Find the newest events that fit into a prefix together with their boundary tokens.

    Args:
        bucket: The users.
        config: How long a prefix is and what a block is.
        row: User of each request, (R,) int64.
        place: Events of that user before the request, (R,) int64.

    Returns:
        The windows, each of which ends at its request, and the tokens that each takes, (R,) int64.
    """
    places, start = token_places(bucket, config), bucket.offsets[row]
    end = start + place
    newest = places[(end - 1).clamp(min=0)]
    first = torch.searchsorted(places, newest + 1 - config.max_history).clamp(start, end)
    tokens = torch.where(place > 0, newest + 1 - places[first], 0)
    return Window(first, end - first), tokens


def add_boundaries(
    history: History, domain: Tensor, config: ContextConfig
) -> tuple[History, Tensor]:
    """Number the interaction blocks and close each but the last with a boundary token.

    Blocks count from the oldest in the window, so that a position never knows how many will follow.

    Args:
        history: In one block.
        domain: Domain of every event, (B, T) int64.
        config: What a block is.

    Returns:
        The history with its boundary tokens, and where each event went, (B, T) int64 (events keep
        their order). Without blocks both are as they came.
    """
    num_rows, num_tokens = history.item.shape
    moved_to = torch.arange(num_tokens).expand(num_rows, num_tokens)
    if config.block_by == "none" or history.item.numel() == 0:
        return history, moved_to
    starts = _block_starts(history.timestamp, history.behavior, domain, config) & history.is_real
    before = starts.long().cumsum(dim=1)
    moved_to = moved_to + before
    lengths = history.lengths + starts.sum(dim=1)
    width = int(lengths.max())

    def spread(values: Tensor, fill: int) -> Tensor:
        out = torch.full((num_rows, width + num_tokens), fill, dtype=values.dtype)
        target = torch.where(history.is_real, moved_to, width + torch.arange(num_tokens))
        return out.scatter_(1, target, values)[:, :width]

    is_event = spread(torch.ones_like(history.item), 0).bool()
    is_boundary = ~is_event & (torch.arange(width) < lengths[:, None])
    block = spread(before + 1, 0)
    # A boundary belongs to the block it closes and happens when that block's last event did.
    previous = torch.cat((torch.zeros(num_rows, 1, dtype=torch.long), block[:, :-1]), dim=1)
    timestamp = spread(history.timestamp, 0)
    earlier = torch.cat((timestamp[:, :1], timestamp[:, :-1]), dim=1)
    return (
        replace(
            history,
            item=spread(history.item, PAD),
            behavior=spread(history.behavior, PAD).masked_fill(is_boundary, BOUNDARY),
            timestamp=torch.where(is_boundary, earlier, timestamp),
            gap=spread(history.gap, 0),
            block=torch.where(is_boundary, previous, block),
            lengths=lengths,
            features={name: spread(value, 0) for name, value in history.features.items()},
        ),
        moved_to,
    )
