"""The peer's scoring job: parquet events → RecTools' recommendations → parquet.

Runs in the peer's environment and imports nothing of ours but the peer's own script::

    python -m pipelines.benchmarks.peer_score fit --events E --out DIR
    python -m pipelines.benchmarks.peer_score score --events E --out DIR --k 100
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import peer_rectools as peer


def read_dataset(events: Path, order: str) -> Any:
    """Read a log as a RecTools dataset under its own ids."""
    from rectools.dataset import Dataset  # type: ignore[import-not-found, unused-ignore]

    frame = pq.read_table(events, columns=["user_id", "item_id", order]).to_pandas()
    frame["datetime"] = pd.to_datetime(frame.pop(order), unit="s")
    return Dataset.construct(frame.assign(weight=1.0))


def fit(args: argparse.Namespace) -> None:
    """Train one step and save the model: what scoring costs does not depend on the weights."""
    clock = peer.make_clock(None, warmup_steps=0)
    model = peer.build_model(args, clock, max_epochs=1, limit_train_batches=1)
    model.fit(read_dataset(args.events, args.order))
    model.save(args.out / "model.bin")


def score(args: argparse.Namespace) -> dict[str, float | int]:
    """Load the model, read the log, recommend to every user, write parquet; timed as a whole."""
    from rectools.models import load_model  # type: ignore[import-not-found, unused-ignore]

    started = time.perf_counter()
    model = load_model(args.out / "model.bin")
    dataset = read_dataset(args.events, args.order)
    users = np.asarray(dataset.user_id_map.external_ids)
    found = model.recommend(users, dataset, k=args.k, filter_viewed=True)
    table = pa.Table.from_pandas(found, preserve_index=False)
    pq.write_table(table, args.out / "recommendations.parquet")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "users": len(users), "rows": table.num_rows}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", choices=("fit", "score"))
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--order", default="seq_pos")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--k", type=int, default=100)
    for name, default in (("width", 64), ("layers", 2), ("heads", 2), ("length", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit or score, and write ``result.json``."""
    import torch

    args = parse(argv)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.job == "fit":
        fit(args)
    else:
        versions = {name: version(name) for name in peer.PACKAGES}
        peer.write_json(args.out / "result.json", {**score(args), "versions": versions})
    return 0


if __name__ == "__main__":
    sys.exit(main())
