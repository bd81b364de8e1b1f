"""Windows and requests of one bucket's users → a ContextBatch."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recsys.batch import ContextBatch, Requests
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.descriptors import situation_values
from recsys.context.history import Window, add_boundaries, gap_bucket, read_window
from recsys.data.dataset import Histories
from recsys.schema import Manifest


def assemble(
    bucket: Histories,
    manifest: Manifest,
    config: ContextConfig,
    *,
    rows: Tensor,
    window: Window,
    cut: Tensor,
    is_real: Tensor,
    timestamp: Tensor,
    asked: dict[str, Tensor] | None = None,
    anchors: AnchorReader | None = None,
) -> tuple[ContextBatch, Tensor]:
    """Build a batch from users of one bucket.

    Args:
        bucket: Where the users are.
        manifest: Of the data set, for what its columns mean.
        config: How to read them.
        rows: The users, (B,) int64.
        window: The events of each that the prefix holds.
        cut: Events of the window each request may see, (B, Q) int64.
        is_real: False for padded requests, (B, Q) bool.
        timestamp: Moment of each request, seconds since 1970, (B, Q) int64.
        asked: What the requests bring along, by situation column, (B, Q) each; None = unknown.
        anchors: Reads preference anchors; None where the config names none.

    Returns:
        The batch, and the place of each event among its history tokens, (B, T) int64.
    """
    history, domain = read_window(bucket, window, has_time=manifest.has_time)
    asked = asked or {}
    last_time = history.timestamp.gather(1, (cut - 1).clamp(min=0))
    gap = torch.zeros_like(cut)
    if manifest.has_time:
        gap = torch.where(cut > 0, gap_bucket(timestamp - last_time), 0)
    situation = situation_values(
        manifest, config, timestamp=timestamp, gap=gap, history=history, cut=cut, asked=asked
    )
    found = None
    if anchors is not None:
        found = anchors.anchors(
            bucket,
            rows=rows,
            window=window,
            place=window.start[:, None] + cut,
            timestamp=timestamp,
            is_real=is_real,
            query=asked.get("query"),
        )
    history, moved_to = add_boundaries(history, domain, config)
    token_cut = torch.where(cut > 0, moved_to.gather(1, (cut - 1).clamp(min=0)) + 1, 0)
    requests = Requests(
        cut=token_cut,
        is_real=is_real,
        timestamp=timestamp,
        gap=gap,
        situation=situation,
        anchor_item=found,
    )
    return ContextBatch(history, requests, _user_features(bucket, rows)), moved_to


def _user_features(bucket: Histories, rows: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, values in bucket.user_values.items():
        taken = values[rows]
        found[name] = taken.float() if taken.is_floating_point() else taken.long()
    for name, column in bucket.user_lists.items():
        lists = [column.row(int(row)).long() for row in rows]
        found[name] = pad_sequence(lists, batch_first=True) if lists else torch.zeros(0, 0).long()
    return found
