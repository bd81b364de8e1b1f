"""One user, warm: how long an answer takes, by batch, catalogue, threads and reasoning steps.

The model has its first weights and the catalogue random vectors: time does not depend on them.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.benchmarks.figures import Record, Rows
from pipelines.benchmarks.setting import Setting, named_run
from pipelines.configs import RunConfig
from recsys.batch import ContextBatch, History, Requests
from recsys.data.dataset import Catalogue
from recsys.model.config import DataSizes, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.retrieval.index import BruteForceIndex
from recsys.training.seed import keep_freed_memory, seed_everything
from recsys.types import FIRST_BEHAVIOR, FIRST_ID

PERCENTILES = (50, 95, 99)
WARM_UP = 3
"""Untimed calls of each side."""


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
    """Items found for a user, seen ones left out."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("catalogues", "batches", "thread_counts"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be numbers of at least 1.")
        if self.calls < 1 or self.k < 1:
            raise ValueError(f"calls ({self.calls}) and k ({self.k}) must be at least 1.")


@dataclass(frozen=True, slots=True)
class Server:
    """A model that answers, with its index."""

    model: OnePiece
    items: torch.Tensor
    index: BruteForceIndex
    k: int

    def read(self, batch: ContextBatch) -> torch.Tensor:
        """Encode and reason: the answering query of each user, (B, D)."""
        found = self.model.queries(batch, self.items)
        return next(reversed(found.values()))[:, 0]

    def answer(self, batch: ContextBatch) -> torch.Tensor:
        """End to end: encode, reason, search; ids (B, k)."""
        seen = batch.history.item
        return self.index.search(self.read(batch), self.k, exclude=seen)[1]


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
    available = os.cpu_count() or 1
    results: dict[str, Any] = {"run": config.run, "cases": []}
    rows: Rows = []
    before = torch.get_num_threads()
    for num_items in config.catalogues:
        servers = {f"k{k}": _server(run, num_items, k, config.k) for k in (0, steps)}
        for threads in sorted({min(t, available) for t in config.thread_counts}):
            torch.set_num_threads(threads)
            for size in config.batches:
                batch = random_batch(size, run.context.max_history, num_items)
                found = _case(servers, batch, max(20, config.calls // size), steps)
                case = {"items": num_items, "threads": threads, "batch": size, **found}
                results["cases"].append(case)
                rows.append(_row(case, steps))
    torch.set_num_threads(before)
    record.save(results, rows)
    return results


def _case(
    servers: dict[str, Server], batch: ContextBatch, calls: int, steps: int
) -> dict[str, Any]:
    functions: dict[str, Callable[[ContextBatch], object]] = {
        f"{name}/{part}": getattr(server, part)
        for part in ("read", "answer")
        for name, server in servers.items()
    }
    times: dict[str, list[float]] = {name: [] for name in functions}
    for call in range(calls + WARM_UP):
        for name, function in functions.items():
            started = time.perf_counter()
            function(batch)
            if call >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {
        "calls": calls,
        "ms": {name: percentiles(values) for name, values in times.items()},
        "overhead": {
            part: np.median(times[f"k{steps}/{part}"]) / np.median(times[f"k0/{part}"])
            for part in ("read", "answer")
        },
    }


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


def _server(run: RunConfig, num_items: int, num_steps: int, k: int) -> Server:
    seed_everything(0)
    config = RecommenderConfig(
        data=DataSizes(num_items=num_items, num_trained_items=num_items - 2, has_time=False),
        encoder=replace(run.encoder, max_history=run.context.max_history),
        reasoner=replace(run.reasoner, num_steps=num_steps),
    )
    model = OnePiece(config, plain_catalogue(num_items)).eval()
    recommendable = torch.arange(num_items) >= FIRST_ID
    vectors = model.item_vectors()
    return Server(model, vectors, BruteForceIndex(vectors, recommendable), k)


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
