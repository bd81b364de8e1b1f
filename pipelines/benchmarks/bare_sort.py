"""The floor of preparing a log: polars sorts and groups it and writes Arrow, nothing else.

python -m pipelines.benchmarks.bare_sort logs/events histories.arrow
"""

import sys
from pathlib import Path

import polars as pl


def main(argv: list[str] | None = None) -> int:
    """Sort a log by user and time, ties by row, into one list a user and column."""
    events, out = sys.argv[1:] if argv is None else argv
    source = Path(events)
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    (
        pl.scan_parquet(files, row_index_name="row")
        .select("user_id", "item_id", "timestamp", "behavior", "row")
        .sort("user_id", "timestamp", "row")
        .group_by("user_id", maintain_order=True)
        .agg("item_id", "timestamp", "behavior")
        .sink_ipc(out)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
