"""How good: our run and the peer's SASRec, each trained to convergence on validation, user by user.

Both read the same events, cut them alike, leave seen items out, rank the test target among every
item with a training event and count ties against it. Neither sees the test part before the end.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.benchmarks.figures import Record, Rows
from pipelines.benchmarks.peer import Peer, sizes
from pipelines.benchmarks.process import finish
from pipelines.benchmarks.setting import Log, Setting, as_flags, open_log, use_threads
from pipelines.configs import RUNS, RunConfig
from recsys.config import from_dict, read_json, to_dict
from recsys.context.config import ContextConfig
from recsys.context.loader import evaluation_batches
from recsys.evaluation.run import evaluate
from recsys.evaluation.scorers import ModelScorer
from recsys.metrics.interval import bootstrap, paired_difference
from recsys.metrics.ranking import ranking_metrics
from recsys.model.save import load_pretrained
from recsys.training.seed import keep_freed_memory

PEER_MISS = np.iinfo(np.int32).max
"""The peer's rank of a target that it cannot recommend; its other ranks count from 0."""
PEER = "RecTools SASRec"
HEADLINE = ("recall@10", "ndcg@10")

Ranks = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityBenchmark:
    """What to train."""

    run: str = "ml-1m-prefix"
    """Named run; the peer gets its width, layers, heads and length."""
    train_flags: tuple[str, ...] = ()
    """More flags of ``train``, each as one word, such as ``train.epochs=40``."""
    our_run: Path | None = None
    """A run folder trained before on the same data; None trains one."""
    peer_run: Path | None = None
    """The peer's folder, trained before on the same events; None trains one."""
    peer_epochs: int = 100
    peer_patience: int = 5
    """Validations of the peer without a better one before it stops."""
    peer_eval_every: int = 2
    """Epochs between the peer's validations."""
    replicates: int = 1000
    """Bootstrap samples of users."""

    def __post_init__(self) -> None:
        """Check the run."""
        if self.run not in RUNS:
            raise ValueError(f"run ({self.run!r}) must be one of {sorted(RUNS)}.")


def benchmark_quality(setting: Setting, config: QualityBenchmark) -> dict[str, Any]:
    """Train both, rank the test targets, compare user by user.

    Args:
        setting: Where to work and on what.
        config: What.

    Returns:
        The results, as saved.
    """
    record = Record("quality", setting)
    use_threads(setting)
    keep_freed_memory()
    log, run = open_log(setting), RUNS[config.run]()
    mine = config.our_run or _train(setting, config, record, log)
    theirs = config.peer_run or _train_peer(setting, config, record, log, run)
    result = read_json(theirs / "result.json")
    record.peer = result["versions"]
    users, ranks = our_ranks(mine / "model", log)
    peer_ranks = read_peer_ranks(theirs / "ranks.parquet", users)
    answer = list(ranks)[-1]
    found = {
        **{name: _metrics(r, config.replicates) for name, r in ranks.items()},
        PEER: _metrics(peer_ranks, config.replicates),
    }
    difference = compare(ranks[answer], peer_ranks, config.replicates)
    cost = _cost(mine, read_jsonl(mine / "metrics.jsonl"), result)
    results = {
        "log": log.facts,
        "run": config.run,
        "answer": answer,
        "users": len(users),
        "test": found,
        "answer_minus_peer": difference,
        "ours": cost,
        "peer": {
            key: result.get(key)
            for key in ("epochs", "best_epoch", "train_seconds", "parameters", "finished", "config")
        },
    }
    rows: Rows = [("log", ", ".join(f"{k} {v}" for k, v in log.facts.items()))]
    for name, metrics in found.items():
        shown = [
            f"{m} {metrics[m]['mean']:.4f} [{metrics[m]['low']:.4f}, {metrics[m]['high']:.4f}]"
            for m in HEADLINE
        ]
        rows.append((name if name == PEER else f"ours, {name}", ", ".join(shown)))
    for metric in HEADLINE:
        d = difference[metric]
        shown_d = f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}], p {d['p']:.2g}"
        rows.append((f"{answer} − peer, {metric}", shown_d))
    rows.append(("seconds of training", f"ours {cost['seconds']}, peer {result['train_seconds']}"))
    rows.append(("ours reached the peer's best after", f"{cost['seconds_to_peer_best']} s"))
    record.save(results, rows)
    return results


def _train(setting: Setting, config: QualityBenchmark, record: Record, log: Log) -> Path:
    """Train our run, or go on with the very same; returns its folder."""
    flags = [
        *as_flags({"data": log.dataset.path, "train.threads": setting.threads}),
        *(f"--{flag}" for flag in config.train_flags),
    ]
    out = setting.out / "quality" / f"{config.run}-{_key(flags)}"
    command = [sys.executable, "-m", "pipelines", "train", config.run, *flags, "--out", str(out)]
    record.command(command)
    if not (out / "complete").exists():
        resume = ["--resume"] if (out / "metrics.jsonl").exists() else []
        finish([*command, *resume], show=True)
        (out / "complete").touch()
    return out


def _train_peer(
    setting: Setting, config: QualityBenchmark, record: Record, log: Log, run: RunConfig
) -> Path:
    flags: dict[str, object] = {
        "epochs": config.peer_epochs,
        "patience": config.peer_patience,
        "eval_every": config.peer_eval_every,
    }
    key = _key([str(log.events), *as_flags({**flags, **sizes(run), "threads": setting.threads})])
    out = setting.out / "quality" / f"peer-{key}"
    if not (out / "complete").exists():
        Peer.of(setting, record).run("quality", log, run, out=out, **flags)
        (out / "complete").touch()
    return out


def _key(flags: Sequence[str]) -> str:
    """A name for what decides a training."""
    return hashlib.sha256(json.dumps(list(flags)).encode()).hexdigest()[:8]


def our_ranks(model_folder: Path, log: Log) -> tuple[list[str], dict[str, Ranks]]:
    """Rank the test targets with a trained model.

    Args:
        model_folder: The model.
        log: Its data.

    Returns:
        External user ids, and the ranks from 1 of every head, the answer last, (U,) each.

    Raises:
        ValueError: If the model was trained on other items.
    """
    model, catalogue, _, context = load_pretrained(model_folder)
    if not catalogue.item_ids.equals(log.dataset.catalogue.item_ids):
        raise ValueError(f"{model_folder} was trained on other items than {log.dataset.path}.")
    batches = evaluation_batches(
        log.dataset, from_dict(ContextConfig, context), part="test", batch_size=256
    )
    table = evaluate([ModelScorer(model)], batches, log.dataset.catalogue, list_k=0)
    chunks = [chunk for b in log.dataset.buckets for chunk in b.user_ids.chunks]
    names = pa.chunked_array(chunks).take(pa.array(table.user_index)).to_pylist()
    return [str(name) for name in names], {head: r for (_, head), r in table.ranks.items()}


def read_peer_ranks(path: Path, users: list[str]) -> Ranks:
    """Read the peer's ranks in the order of our users.

    Args:
        path: Its ``ranks.parquet``: ``user_id``, ``rank`` from 0.
        users: External ids.

    Returns:
        Ranks from 1, inf for a miss, (U,).

    Raises:
        ValueError: If the users are not the same.
    """
    table = pq.read_table(path)
    rank = table["rank"].to_numpy().astype(np.float64)
    rank = np.where(rank >= PEER_MISS, np.inf, rank + 1)
    by_user = dict(zip(map(str, table["user_id"].to_pylist()), rank, strict=True))
    if by_user.keys() != set(users) or len(users) != len(rank):
        raise ValueError(
            f"{path} holds {len(by_user)} users, our test part {len(users)}, of which "
            f"{len(by_user.keys() & set(users))} are the same: the two runs read other logs."
        )
    return np.array([by_user[user] for user in users])


def compare(ours: Ranks, theirs: Ranks, replicates: int = 1000) -> dict[str, dict[str, float]]:
    """Paired differences of every metric, ours minus theirs.

    Args:
        ours: Ranks from 1, (U,).
        theirs: Of the same users.
        replicates: Bootstrap samples.

    Returns:
        Metric → mean, interval, p and what could have been detected.
    """
    a, b = (ranking_metrics(ranks, (5, 10, 20)) for ranks in (ours, theirs))
    return {m: to_dict(paired_difference(a[m], b[m], replicates=replicates)) for m in a}


def _metrics(ranks: Ranks, replicates: int) -> dict[str, dict[str, float]]:
    found = ranking_metrics(ranks, (5, 10, 20))
    return {m: to_dict(bootstrap(v, replicates=replicates)[0]) for m, v in found.items()}


def _cost(folder: Path, log: list[dict[str, Any]], peer: dict[str, Any]) -> dict[str, Any]:
    """Epochs, wall time, and when validation first passed the peer's best."""
    metric = "ndcg@10"
    judged = [line for line in log if metric in line]
    best = max(judged, key=lambda line: float(line[metric]), default={})
    goal = peer.get("validation", {}).get(metric, float("inf"))
    passed = next((line["seconds"] for line in judged if line[metric] >= goal), None)
    return {
        "folder": folder.name,
        "epochs": log[-1]["epoch"] if log else 0,
        "seconds": log[-1]["seconds"] if log else 0.0,
        "best_epoch": best.get("epoch"),
        "best_validation": best.get(metric),
        "peer_best_validation": None if goal == float("inf") else goal,
        "seconds_to_peer_best": passed,
        "curve": [[line["epoch"], line["seconds"], line[metric]] for line in judged],
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
