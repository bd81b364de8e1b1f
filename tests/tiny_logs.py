"""Small raw logs with everything in them, and the same prepared; fixtures for any test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.prepare import PrepareConfig, prepare
from recsys.schema import ColumnSpec, SplitSpec

FUNNEL = ("click", "cart", "order")
START = 1_700_000_000


@dataclass(frozen=True)
class TinyLogs:
    """Paths of the three tables."""

    events: Path
    items: Path
    users: Path


@pytest.fixture
def tiny_logs(tmp_path: Path) -> TinyLogs:
    """50 users, 40 items, 600 events over 30 days; two users have one event only.

    Items 0-37 may be in the log, 38 and 39 are only in the table; ``category`` is the id modulo 5.
    Behaviors: click, cart, order (the funnel) and ``favourite`` outside it.
    """
    rng = np.random.default_rng(7)
    user = np.concatenate([np.arange(48), rng.integers(0, 48, 550), [48, 49]])
    item = (rng.random(600) ** 2 * 38).astype(np.int64)
    behavior = np.array([*FUNNEL, "favourite"])[rng.choice(4, 600, p=[0.6, 0.2, 0.1, 0.1])]
    events = pa.table(
        {
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"i{i}" for i in item],
            "timestamp": np.sort(rng.integers(START, START + 30 * 86400, 600)),
            "behavior": behavior.tolist(),
            "device": [("phone", "desktop")[u % 2] for u in user],
            "price": rng.random(600) * 100,
        }
    )
    ids = np.arange(40)
    items = pa.table(
        {
            "item_id": [f"i{i}" for i in ids],
            "category": [f"c{i % 5}" for i in ids],
            "tags": [[f"t{i % 3}", f"t{i % 7}"] for i in ids],
            "weight": ids.astype(np.float64),
            "text": [f"thing number{i} of kind{i % 5}" for i in ids],
        }
    )
    names = [f"u{u}" for u in range(49)]
    users = pa.table({"user_id": names, "country": [("de", "fr", "it")[u % 3] for u in range(49)]})
    folder = tmp_path / "logs"
    folder.mkdir()
    for name, table in (("events", events), ("items", items), ("users", users)):
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=100)
    return TinyLogs(*(folder / f"{name}.parquet" for name in ("events", "items", "users")))


def tiny_config(logs: TinyLogs, out: Path, **changes: object) -> PrepareConfig:
    """Everything declared: event, item and user features, a funnel, a time split."""
    values: dict[str, object] = {
        "events": (str(logs.events),),
        "items": (str(logs.items),),
        "users": (str(logs.users),),
        "out": out,
        "columns": ColumnSpec(
            event_features=("device", "price"),
            item_features=("category", "tags", "weight", "text"),
            user_features=("country",),
        ),
        "split": SplitSpec(validation_fraction=0.15, test_fraction=0.15),
        "funnel": FUNNEL,
        "target_behavior": "click",
        "text_features": ("text",),
        "text_width": 4,
        "num_buckets": 2,
        "threads": 1,
    }
    return PrepareConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def prepared_tiny(tiny_logs: TinyLogs, tmp_path: Path) -> Path:
    """``tiny_logs`` prepared with every feature declared; the folder."""
    out = tmp_path / "prepared"
    prepare(tiny_config(tiny_logs, out))
    return out
