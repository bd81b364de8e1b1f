"""What every benchmark shares: its flags, the log it measures on, and an untrained model of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch

from pipelines.configs import RUNS, RunConfig
from recsys.data.catalogue import locate
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.data.synthetic import SyntheticConfig, write_streamed
from recsys.model.config import DataSizes, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.schema import ColumnSpec, SplitSpec
from recsys.training.seed import seed_everything

ORDER_COLUMNS = ("seq_pos", "timestamp")
"""Columns that may order a user's events, the first that is there."""
SYNTHETIC = SyntheticConfig(num_users=3_000, num_items=3_000, num_events=400_000)
"""The log of ``--synthetic``: a stranger's stand-in for MovieLens-1M."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where a benchmark works and what it works on."""

    out: Path
    """Folder of the results, and of what is made once: logs, prepared data, the peer."""
    data: Path | None = None
    """The log as a prepared data set (leave-one-out); None prepares it."""
    events: Path | None = None
    """The log's parquet events, which the peer reads; None finds a copy of MovieLens-1M."""
    synthetic: bool = False
    """Measure on a synthetic log, where there is no copy of MovieLens-1M."""
    max_users: int | None = None
    """Keep the first users of the log only, for a trial; --data is then prepared anew."""
    repeats: int = 5
    """Times each side is measured, in turns."""
    threads: int = 2
    """Processor threads of every side."""
    peer_env: Path | None = None
    """A Python environment with RecTools; None makes one in OUT/peer-env."""

    def __post_init__(self) -> None:
        """Check the numbers and what goes together."""
        for name in ("repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.max_users is not None and self.max_users < 3:
            raise ValueError(f"max_users ({self.max_users}) must be at least 3.")
        if self.data is not None and self.events is None:
            raise ValueError(
                "--data needs --events: the peer reads the log, we read the prepared data set, "
                "and both must be the same."
            )
        if self.synthetic and self.events is not None:
            raise ValueError("--synthetic makes its own log; leave --events and --data out.")


@dataclass(frozen=True, slots=True)
class Log:
    """The log both sides work on."""

    events: Path
    """Parquet, a file or a folder."""
    order: str
    """Column that orders a user's events."""
    dataset: PreparedDataset
    facts: dict[str, int | str] = field(default_factory=dict)
    """For the report."""


def open_log(setting: Setting) -> Log:
    """Find or make the log, and prepare it where that was not done yet.

    Args:
        setting: What to work on.

    Returns:
        The log, raw and prepared.

    Raises:
        ValueError: If there is no log, or the prepared data set is of another one.
    """
    events, given = _events(setting), setting.data
    name = "synthetic" if setting.synthetic else events.parent.name
    if setting.max_users is not None:
        events, given = _first_users(events, setting.max_users, setting.out / "logs"), None
        name += f" (first {setting.max_users} users)"
    names = ds.dataset(events, format="parquet").schema.names
    order = next((name for name in ORDER_COLUMNS if name in names), None)
    if order is None:
        raise ValueError(f"{events} has none of the columns {ORDER_COLUMNS} that order events.")
    folder = given or setting.out / "logs" / f"prepared-{fingerprint(events)}"
    if given is None and not (folder / "manifest.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(
            PrepareConfig(
                events=(str(events),),
                out=folder,
                columns=ColumnSpec(timestamp=None, order=order),
                split=SplitSpec(kind="leave_one_out"),
                coarse="none",
            )
        )
    dataset = PreparedDataset(folder)
    rows, prepared = count_rows(events), dataset.manifest.rows_in
    if rows != prepared or dataset.manifest.split.kind != "leave_one_out":
        raise ValueError(
            f"{folder} was prepared from {prepared:,} events by {dataset.manifest.split.kind}, "
            f"{events} holds {rows:,} and the peer cuts by leave_one_out: leave --data out."
        )
    facts: dict[str, int | str] = {
        "log": name,
        "events": rows,
        "users": dataset.manifest.num_users,
        "items": dataset.manifest.num_trained_items,
    }
    return Log(events, order, dataset, facts)


def _events(setting: Setting) -> Path:
    if setting.events is not None:
        if not setting.events.exists():
            raise ValueError(f"--events {setting.events} does not exist.")
        return setting.events
    if setting.synthetic:
        return synthetic_log(SYNTHETIC, setting.out / "logs")
    try:
        return locate("ml-1m") / "events.parquet"
    except ValueError as error:
        raise ValueError(f"{error} Or pass --synthetic to measure on a made-up log.") from None


def synthetic_log(config: SyntheticConfig, folder: Path) -> Path:
    """Write a synthetic log once.

    Args:
        config: Its sizes.
        folder: Where all logs are.

    Returns:
        The folder of its events.
    """
    target = folder / f"synthetic-{config.num_events}-{config.num_users}-{config.num_items}"
    if not (target / "complete").exists():
        write_streamed(config, target)
        (target / "complete").touch()
    return target / "events"


def _first_users(events: Path, number: int, folder: Path) -> Path:
    target = folder / f"{fingerprint(events)}-first-{number}" / "events.parquet"
    if not target.exists():
        table = pq.read_table(events)
        users = pc.unique(table["user_id"]).sort().slice(0, number)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        pq.write_table(table.filter(pc.is_in(table["user_id"], users)), temporary)
        temporary.rename(target)
    return target


def fingerprint(path: Path) -> str:
    """Name a file or folder by its content's outside: names, sizes and times of its files."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([str(path.resolve()), facts]).encode()).hexdigest()[:12]


def count_rows(events: Path) -> int:
    """Rows of a parquet file or folder, from its footers."""
    return int(ds.dataset(events, format="parquet").count_rows())


def named_run(name: str) -> RunConfig:
    """Build a named run.

    Args:
        name: One of the runs of ``pipelines.configs``.

    Returns:
        The run.

    Raises:
        ValueError: If there is no such run, or it has no reasoner to switch off.
    """
    if name not in RUNS:
        raise ValueError(f"run ({name!r}) must be one of {sorted(RUNS)}.")
    run = RUNS[name]()
    if run.reasoner.decoder == "none":
        raise ValueError(
            f"run ({name!r}) has no reasoner; name one that has: the benchmark makes the "
            "prefix-only run from it."
        )
    return run


def untrained(run: RunConfig, dataset: PreparedDataset, seed: int = 0) -> OnePiece:
    """Build a run's model with its first weights; how fast it is does not depend on them.

    Args:
        run: The run.
        dataset: Whose items it knows.
        seed: Of the weights.

    Returns:
        The model, in evaluation mode.
    """
    seed_everything(seed)
    config = RecommenderConfig(
        data=DataSizes.of(dataset.manifest),
        encoder=replace(run.encoder, max_history=run.context.max_history),
        reasoner=run.reasoner,
    )
    return OnePiece(config, dataset.catalogue).eval()


def use_threads(setting: Setting) -> None:
    """Let torch use the threads of the setting."""
    torch.set_num_threads(setting.threads)


def as_flags(flags: dict[str, object]) -> Sequence[str]:
    """Turn names and values into command line arguments; None is left out.

    Example:
        >>> as_flags({"batch_size": 128, "seconds": None, "k": (1, 2)})
        ['--batch-size', '128', '--k', '1', '2']
    """
    found: list[str] = []
    for name, value in flags.items():
        if value is not None:
            values = value if isinstance(value, tuple | list) else (value,)
            found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found
