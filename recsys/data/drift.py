"""What changed since the data set before: a handful of counts for the manifest."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from recsys.config import from_dict, read_json
from recsys.data.idmap import stable_hash
from recsys.data.items import Items
from recsys.schema import Manifest


def drift(
    previous: Path, folder: Path, items: Items, *, buckets: int, events: int
) -> dict[str, int]:
    """Compare a new data set with an earlier one.

    Args:
        previous: The earlier data set.
        folder: The new one; its histories are written already.
        items: The new catalogue's ids.
        buckets: Files of new histories.
        events: Usable events of the new one.

    Returns:
        Counts by name: events, users and items of before; users and items new and gone; of a
        million new training events, those on items that the earlier catalogue did not have.
    """
    before = from_dict(Manifest, read_json(previous / "manifest.json"), where=str(previous))
    with pa.memory_map(str(previous / "items.arrow")) as source:
        known = set(pa.ipc.open_file(source).read_all()["item_id"].to_pylist()[2:])
    fresh = np.array([name not in known for name in items.names], bool)
    old_users = _user_hashes(previous, before.num_buckets)
    users = _user_hashes(folder, buckets)
    total = max(1, int(items.counts.sum()))
    return {
        "drift.events_previous": before.rows_out,
        "drift.events_change": events - before.rows_out,
        "drift.users_previous": before.num_users,
        "drift.users_new": int((~np.isin(users, old_users)).sum()),
        "drift.users_gone": int((~np.isin(old_users, users)).sum()),
        "drift.items_previous": len(known),
        "drift.items_new": int(fresh.sum()),
        "drift.items_gone": len(known - set(items.names)),
        "drift.unknown_per_million": round(1e6 * int(items.counts[fresh].sum()) / total),
    }


def _user_hashes(folder: Path, buckets: int) -> npt.NDArray[np.uint64]:
    """Eight bytes a user stand for the ids."""
    hashes = [np.zeros(0, np.uint64)]
    for index in range(buckets):
        with pa.memory_map(str(folder / "histories" / f"{index:05d}.arrow")) as source:
            column = pa.ipc.open_file(source).read_all()["user_id"]
        hashes += [stable_hash(chunk) for chunk in column.chunks]
    return np.concatenate(hashes)
