"""The situation of a request: what the clock, the running session and the request itself tell.

Nothing here is learnt from the event that follows but its declared columns, which are known when
the system is asked (``ColumnSpec.situation``, the domain): a query, a device, never the item.
"""

import torch
from torch import Tensor

from recsys.batch import History
from recsys.context.config import ContextConfig
from recsys.context.history import session_starts
from recsys.data.dataset import Histories
from recsys.schema import Feature, Manifest
from recsys.types import FIRST_ID, NUM_GAPS, UNKNOWN

DAY_S = 86_400
TIME_ROWS = {"hour": 25, "weekday": 8, "month": 13, "gap": NUM_GAPS, "session": 16}
"""Codes of what the times tell, 0 = unknown included."""


def situation_features(manifest: Manifest, config: ContextConfig) -> tuple[Feature, ...]:
    """What the situation token is made of.

    Args:
        manifest: Of the data set. Where it has no times, nothing that needs them is part of it.
        config: Names what is told.

    Returns:
        The features, with their table rows.

    Raises:
        ValueError: If the domain is asked for and the logs have none, or a declared column is named
            like something else that is told.
    """
    of_time = (name for name in config.situation if name in TIME_ROWS and manifest.has_time)
    return (
        *(Feature(name=name, kind="categorical", rows=TIME_ROWS[name]) for name in of_time),
        *_asked_features(manifest, config),
    )


def _asked_features(manifest: Manifest, config: ContextConfig) -> tuple[Feature, ...]:
    """The domain and the declared columns, which a request brings along."""
    found: tuple[Feature, ...] = ()
    if "domain" in config.situation:
        if not manifest.domains:
            raise ValueError(
                f"situation {list(config.situation)} names 'domain', and the logs have none: "
                "declare columns.domain when preparing, or leave it out."
            )
        rows = len(manifest.domains) + FIRST_ID
        found = (Feature(name="domain", kind="categorical", rows=rows),)
    events = {f.name: f for f in manifest.event_features}
    for name in manifest.columns.situation:
        if name in config.situation:
            raise ValueError(
                f"columns.situation names {name!r}, which situation {list(config.situation)} "
                "names too: leave one of them out."
            )
        found += (events[name],)
    return found


def asked_at(bucket: Histories, manifest: Manifest, place: Tensor) -> dict[str, Tensor]:
    """Read off events what is known of them before their items are.

    Args:
        bucket: Where the events are.
        manifest: Declares the columns.
        place: Of the events asked for in the bucket's flat columns, any shape, int64.

    Returns:
        Values of the declared columns and, where there are domains, ``domain``; same shape.
    """
    columns = {"domain": "domain"} if manifest.domains else {}
    columns |= {name: f"event.{name}" for name in manifest.columns.situation}
    return {name: bucket.events[column].values[place] for name, column in columns.items()}


def situation_values(
    manifest: Manifest,
    config: ContextConfig,
    *,
    timestamp: Tensor,
    gap: Tensor,
    history: History,
    cut: Tensor,
    asked: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Describe the moments of requests.

    ``hour`` 1 … 24, ``weekday`` 1 (Monday) … 7 and ``month`` 1 … 12 are those of UTC; ``gap`` is
    the bucket of the time since the last visible event; ``session`` is 1 where a new session starts
    and 2, 3, 4 … where 1, 2 to 3, 4 to 7 … events of the running one are visible. 0 = unknown.

    Args:
        manifest: Of the data set.
        config: Names what is told.
        timestamp: Of each request, seconds since 1970, (B, Q) int64.
        gap: Bucket of the time since the last visible event, (B, Q) int64.
        history: The events, without boundary tokens.
        cut: Events each request may see, (B, Q) int64.
        asked: What the request brings along, (B, Q) each: declared columns as they are stored, and
            ``domain``. What is missing is unknown: code ``UNKNOWN``, or the mean of a number.

    Returns:
        A value for every name of the config and every declared column: codes (B, Q) int64 or
        numbers (B, Q) float32.
    """
    found: dict[str, Tensor] = {}
    for name in config.situation:
        if not manifest.has_time:
            found[name] = torch.zeros_like(timestamp)
        elif name == "hour":
            found[name] = timestamp % DAY_S // 3600 + 1
        elif name == "weekday":
            found[name] = (timestamp // DAY_S + 3) % 7 + 1
        elif name == "month":
            months = timestamp.numpy().astype("datetime64[s]").astype("datetime64[M]")
            found[name] = torch.from_numpy(months.astype("int64")) % 12 + 1
        elif name == "gap":
            found[name] = gap
        elif name == "session":
            seen = _seen_of_session(history, cut, timestamp, config.session_gap_s)
            digits = torch.frexp(seen.double()).exponent.long()
            found[name] = (1 + digits).clamp(max=TIME_ROWS["session"] - 1)
    for feature in _asked_features(manifest, config):
        coded = feature.kind == "categorical"
        unknown = torch.full(timestamp.shape, UNKNOWN if coded else 0)
        value = asked.get(feature.name, unknown)
        found[feature.name] = value.long() if coded else value.float()
    return found


def _seen_of_session(history: History, cut: Tensor, timestamp: Tensor, gap_s: int) -> Tensor:
    """Visible events of the session that each request belongs to, (B, Q) int64."""
    place = torch.arange(history.item.shape[1])
    starts = session_starts(history.timestamp, gap_s)
    opened = torch.where(starts, place, 0).cummax(dim=1).values
    last = (cut - 1).clamp(min=0)
    pause = timestamp - history.timestamp.gather(1, last)
    return torch.where(pause > gap_s, 0, cut - opened.gather(1, last))
