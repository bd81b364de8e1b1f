"""Full-catalogue evaluation of every user against RecTools' ``recommend`` of the same users."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines.benchmarks.figures import Record, Rows, Spread, in_turns, ratio
from pipelines.benchmarks.peer import Peer
from pipelines.benchmarks.setting import (
    Log,
    Setting,
    named_run,
    open_log,
    untrained,
    use_threads,
)
from pipelines.configs import RunConfig, prefix_only
from recsys.context.loader import evaluation_batches
from recsys.evaluation.run import evaluate
from recsys.evaluation.scorers import ModelScorer
from recsys.training.seed import keep_freed_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateBenchmark:
    """What to evaluate."""

    run: str = "ml-1m"
    """Named run with a reasoner; its prefix-only twin is what the peer is compared with."""
    batch_size: int = 256
    """Users we read at once."""


def benchmark_evaluate(setting: Setting, config: EvaluateBenchmark) -> dict[str, Any]:
    """Measure evaluation.

    Args:
        setting: Where to work and on what.
        config: What.

    Returns:
        The results, as saved.
    """
    record = Record("evaluate", setting)
    use_threads(setting)
    keep_freed_memory()
    log, run = open_log(setting), named_run(config.run)
    peer = Peer.of(setting, record)
    record.notes.append(
        "Ours finds the exact rank of each user's target among all items, the metrics and the top "
        "10; the peer's recommend finds the top 10. Both leave seen items out. Weights are "
        "untrained (ours) or one step old (the peer's): speed does not depend on them."
    )
    prefix = prefix_only(run)
    answer = f"step{run.reasoner.num_steps}"
    sides: dict[str, Callable[[], float]] = {
        "prefix": _ours(log, prefix, ("prefix",), config.batch_size),
        "peer": partial(_theirs, setting, log, run, peer),
        "reasoned": _ours(log, run, (answer,), config.batch_size),
        "all_heads": _ours(log, run, None, config.batch_size),
    }
    found = in_turns(setting.repeats, sides)
    results: dict[str, Any] = {
        "log": log.facts,
        "run": config.run,
        "users_per_second": {name: Spread.of(values) for name, values in found.items()},
        "over_peer": {n: ratio(v, found["peer"]) for n, v in found.items() if n != "peer"},
    }
    titles = {
        "prefix": "ours, prefix head",
        "reasoned": f"ours, K = {run.reasoner.num_steps}, the answer",
        "all_heads": f"ours, K = {run.reasoner.num_steps}, all {run.reasoner.num_steps + 2} heads",
        "peer": "RecTools recommend",
    }
    rows: Rows = [("log", ", ".join(f"{k} {v}" for k, v in log.facts.items()))]
    for name, title in titles.items():
        shown = results["users_per_second"][name].show(" users/s")
        if name != "peer":
            shown += f", {results['over_peer'][name].show('× the peer', 2)}"
        rows.append((title, shown))
    record.save(results, rows)
    return results


def _ours(
    log: Log, run: RunConfig, heads: tuple[str, ...] | None, batch_size: int
) -> Callable[[], float]:
    """Users a second, reading histories and metrics included; warm from its first call on."""
    model = untrained(run, log.dataset)
    context = replace(run.context, requests_per_row=0)

    def measure(max_users: int | None = None) -> float:
        started = time.perf_counter()
        batches = evaluation_batches(
            log.dataset, context, part="test", batch_size=batch_size, max_users=max_users
        )
        found = evaluate([ModelScorer(model, heads=heads)], batches, log.dataset.catalogue)
        found.means()
        return found.num_users / (time.perf_counter() - started)

    measure(batch_size)
    return measure


def _theirs(setting: Setting, log: Log, run: RunConfig, peer: Peer) -> float:
    result = peer.run("recommend-speed", log, run, out=setting.out / "peer/recommend", repeats=1)
    return float(result["users_per_second"])
