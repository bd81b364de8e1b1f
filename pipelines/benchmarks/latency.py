"""One user, warm: how long an answer takes, by batch, catalogue, threads and reasoning steps.

Then both stages of the cascade, and the ranking's throughput with one reading of the prefix for all
groups of candidates and with one a group. The model has its first weights and the catalogue random
vectors: time does not depend on them.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.benchmarks.figures import Record, Rows, Spread, ratio
from pipelines.benchmarks.setting import Setting, named_run
from pipelines.configs import RunConfig
from recsys.batch import CandidateSet, ContextBatch, History, Requests
from recsys.data.dataset import Catalogue
from recsys.model.config import DataSizes, RankerConfig, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.ranking.groups import group_candidates, ungroup
from recsys.retrieval.index import BruteForceIndex
from recsys.training.seed import keep_freed_memory, seed_everything
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, PAD

PERCENTILES = (50, 95, 99)
WARM_UP = 3
"""Untimed calls of each side."""
_Functions = dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyBenchmark:
    """What to ask."""

    run: str = "ml-1m"
    """Named run with a reasoner."""
    catalogues: tuple[int, ...] = (10_000, 100_000)
    batches: tuple[int, ...] = (1, 16, 256)
    """Users asked at once."""
    thread_counts: tuple[int, ...] = (1, 2)
    """Replaces --threads here; more than the machine has are left out."""
    calls: int = 300
    """Timed calls of one user at a time; larger batches get fewer, at least 20."""
    k: int = 200
    """Items found for a user, seen ones left out; the cascade ranks them all."""
    tasks: int = 3
    """Tasks of the ranking stage."""
    ranked_users: int = 16
    """Users whose candidates are ranked at once where throughput is measured."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("catalogues", "batches", "thread_counts"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be numbers of at least 1.")
        for name in ("calls", "k", "tasks", "ranked_users"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")


@dataclass(frozen=True, slots=True)
class Server:
    """A model that answers, with its index."""

    model: OnePiece
    items: torch.Tensor
    index: BruteForceIndex
    k: int

    group_size: int

    def read(self, batch: ContextBatch) -> torch.Tensor:
        """Encode and reason: the answering query of each user, (B, D)."""
        return self.model.answers(batch, self.items)[:, 0]

    def answer(self, batch: ContextBatch) -> torch.Tensor:
        """End to end: encode, reason, search; ids (B, k)."""
        return self._search(self.read(batch), batch)

    def cascade(self, batch: ContextBatch) -> torch.Tensor:
        """Both stages on one reading: encode, reason, search, rank; ids (B, k)."""
        state = self.model.read(batch, self.items)
        ids = self._search(self.model.query_of(state)[:, 0], batch)
        groups, where = self.groups(ids)
        logits = ungroup(self.model.rank_of(state, groups), where)[..., -1]
        return ids.gather(1, logits.argsort(dim=1, descending=True))

    def rank_together(self, batch: ContextBatch, groups: CandidateSet) -> None:
        """Rank all groups on one reading of the prefix."""
        self.model.rank_of(self.model.read(batch, self.items), groups)

    def rank_apart(self, batch: ContextBatch, groups: CandidateSet) -> None:
        """Read the prefix again for every group."""
        for one in groups.item.split(1, dim=2):  # type: ignore[no-untyped-call]
            self.rank_together(batch, CandidateSet(one))

    def groups(self, ids: torch.Tensor) -> tuple[CandidateSet, torch.Tensor]:
        """The candidates (B, k) in groups, and where each went."""
        keys = torch.arange(len(ids))
        return group_candidates(ids, self.group_size, salt=0, request_key=keys)

    def _search(self, query: torch.Tensor, batch: ContextBatch) -> torch.Tensor:
        return self.index.search(query, self.k, exclude=batch.history.item)[1]


def benchmark_latency(setting: Setting, config: LatencyBenchmark) -> dict[str, Any]:
    """Measure answers.

    Args:
        setting: Where to write.
        config: What to ask.

    Returns:
        The results, as saved.
    """
    record = Record("latency", setting)
    keep_freed_memory()
    run = named_run(config.run)
    steps = run.reasoner.num_steps
    record.notes.append(
        f"Times in ms of one call. read = encode and reason; answer = read and the exact search "
        f"for {config.k} unseen items. Histories are {run.context.max_history} long. K = 0 is the "
        f"same model without its {steps} steps; calls with and without take turns."
    )
    record.notes.append(
        f"The cascade reads once, finds {config.k} items and ranks them by {config.tasks} tasks in "
        f"groups of {run.context.group_size}. Throughput is of {config.ranked_users} users at "
        "once, reading included, with one reading for all groups and with one a group, in turns."
    )
    available = os.cpu_count() or 1
    results: dict[str, Any] = {"run": config.run, "cases": [], "cascade": []}
    rows: Rows = []
    before = torch.get_num_threads()
    for num_items in config.catalogues:
        servers = {f"k{k}": _server(run, num_items, k, config.k) for k in (0, steps)}
        ranker = run.ranker if run.ranker.decoder != "none" else RankerConfig(decoder="own")
        ranking = _server(replace(run, ranker=ranker), num_items, steps, config.k, config.tasks)
        for threads in sorted({min(t, available) for t in config.thread_counts}):
            torch.set_num_threads(threads)
            for size in config.batches:
                batch = random_batch(size, run.context.max_history, num_items)
                found = _case(servers, batch, max(20, config.calls // size), steps)
                case = {"items": num_items, "threads": threads, "batch": size, **found}
                results["cases"].append(case)
                rows.append(_row(case, steps))
            case = {"items": num_items, "threads": threads, **_cascade(ranking, run, config)}
            results["cascade"].append(case)
            rows += _cascade_rows(case)
    torch.set_num_threads(before)
    record.save(results, rows)
    return results


def _case(
    servers: dict[str, Server], batch: ContextBatch, calls: int, steps: int
) -> dict[str, Any]:
    functions: _Functions = {
        f"{name}/{part}": partial(getattr(server, part), batch)
        for part in ("read", "answer")
        for name, server in servers.items()
    }
    times = _timed(functions, calls)
    return {
        "calls": calls,
        "ms": {name: percentiles(values) for name, values in times.items()},
        "overhead": {
            part: np.median(times[f"k{steps}/{part}"]) / np.median(times[f"k0/{part}"])
            for part in ("read", "answer")
        },
    }


def _cascade(server: Server, run: RunConfig, config: LatencyBenchmark) -> dict[str, Any]:
    num_items, length = server.index.num_items, run.context.max_history
    one, many = (random_batch(size, length, num_items) for size in (1, config.ranked_users))
    groups = server.groups(server.answer(many))[0]
    functions: _Functions = {
        "retrieval": lambda: server.answer(one),
        "cascade": lambda: server.cascade(one),
    }
    both: _Functions = {
        "shared": lambda: server.rank_together(many, groups),
        "reread": lambda: server.rank_apart(many, groups),
    }
    latency = _timed(functions, config.calls)
    ranked = int((groups.item != PAD).sum())
    speed = {
        name: [1e3 * ranked / ms for ms in values]
        for name, values in _timed(both, max(5, config.calls // 30)).items()
    }
    return {
        "ms": {name: percentiles(values) for name, values in latency.items()},
        "candidates_per_second": {name: Spread.of(values) for name, values in speed.items()},
        "shared_over_reread": ratio(speed["shared"], speed["reread"]),
    }


def _timed(functions: _Functions, calls: int) -> dict[str, list[float]]:
    """Milliseconds of each call, the functions taking turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for call in range(calls + WARM_UP):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if call >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


def _cascade_rows(case: dict[str, Any]) -> Rows:
    where = f"{case['items']:,} items, {case['threads']} thread(s)"
    ms, speed = case["ms"]["cascade"], case["candidates_per_second"]
    shown = " / ".join(f"{ms[f'p{p}']:.1f}" for p in PERCENTILES)
    return [
        (
            f"{where}, cascade",
            f"p50/p95/p99 {shown} ms, one user",
        ),
        (
            f"{where}, ranking",
            f"{speed['shared'].show(' candidates/s')}; {case['shared_over_reread'].show('×', 2)} "
            "a reading a group",
        ),
    ]


def percentiles(values: list[float]) -> dict[str, float]:
    """The percentiles reported, and the range.

    Example:
        >>> percentiles([3.0, 1.0, 2.0])["p50"]
        2.0
    """
    found = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {**found, "min": min(values), "max": max(values)}


def _row(case: dict[str, Any], steps: int) -> tuple[str, str]:
    ms = case["ms"][f"k{steps}/answer"]
    shown = " / ".join(f"{ms[f'p{p}']:.1f}" for p in PERCENTILES)
    label = f"{case['items']:,} items, {case['threads']} thread(s), batch {case['batch']}"
    overhead = case["overhead"]
    return label, (
        f"p50/p95/p99 {shown} ms; K = {steps} ÷ K = 0: {overhead['answer']:.2f}× end to end, "
        f"{overhead['read']:.2f}× without search"
    )


def _server(run: RunConfig, num_items: int, num_steps: int, k: int, tasks: int = 0) -> Server:
    """A server; with tasks it has the run's ranking stage."""
    seed_everything(0)
    config = RecommenderConfig(
        data=DataSizes(
            num_items=num_items,
            num_trained_items=num_items - 2,
            num_tasks=max(1, tasks),
            has_time=False,
        ),
        encoder=replace(run.encoder, max_history=run.context.max_history),
        reasoner=replace(run.reasoner, num_steps=num_steps),
        ranker=run.ranker if tasks else RankerConfig(),
    )
    model = OnePiece(config, plain_catalogue(num_items)).eval()
    recommendable = torch.arange(num_items) >= FIRST_ID
    vectors = model.item_vectors()
    index = BruteForceIndex(vectors, recommendable)
    return Server(model, vectors, index, k, run.context.group_size)


def plain_catalogue(num_items: int) -> Catalogue:
    """Items without features.

    Args:
        num_items: N, the two reserved rows included.

    Returns:
        The catalogue.
    """
    return Catalogue(
        item_ids=pa.array([""] * FIRST_ID + [str(i) for i in range(FIRST_ID, num_items)]),
        train_count=torch.ones(num_items, dtype=torch.long),
        coarse=torch.zeros(num_items, dtype=torch.long),
        num_trained=num_items - FIRST_ID,
        features=(),
        values={},
        lists={},
    )


def random_batch(size: int, length: int, num_items: int, seed: int = 0) -> ContextBatch:
    """Users with full histories of random items, one request each at its end.

    Args:
        size: B.
        length: T, events of each history.
        num_items: N, the two reserved rows included.
        seed: Of the draws.

    Returns:
        The batch.
    """
    random = torch.Generator().manual_seed(seed)
    item = torch.randint(FIRST_ID, num_items, (size, length), generator=random)
    nothing = torch.zeros_like(item)
    history = History(
        item=item,
        behavior=torch.full_like(item, FIRST_BEHAVIOR),
        timestamp=torch.arange(length).expand(size, -1),
        gap=nothing,
        block=torch.ones_like(item),
        lengths=torch.full((size,), length),
    )
    one = torch.ones(size, 1, dtype=torch.long)
    requests = Requests(
        cut=one * length, is_real=one.bool(), timestamp=one * length, gap=torch.zeros_like(one)
    )
    return ContextBatch(history, requests)
