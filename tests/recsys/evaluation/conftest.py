"""Requests and catalogues made by hand."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from recsys.batch import ContextBatch, EvaluationBatch, History, Requests


def build_catalogue(num_items: int = 23, num_trained: int = 18) -> SimpleNamespace:
    counts = torch.zeros(num_items, dtype=torch.int64)
    counts[2 : 2 + num_trained] = torch.arange(num_trained, 0, -1)
    coarse = torch.arange(num_items) % 3 + 1
    coarse[:2] = 0
    return SimpleNamespace(
        num_items=num_items, num_trained=num_trained, train_count=counts, coarse=coarse
    )


def build_batch(target: Tensor, seen: Tensor, user_index: Tensor | None = None) -> EvaluationBatch:
    rows = len(target)
    empty = torch.zeros(rows, seen.shape[1], dtype=torch.int64)
    history = History(
        item=seen,
        behavior=torch.full_like(seen, 3),
        timestamp=empty,
        gap=empty,
        block=empty,
        lengths=(seen != 0).sum(1),
    )
    requests = Requests(
        cut=(seen != 0).sum(1, keepdim=True),
        is_real=torch.ones(rows, 1, dtype=torch.bool),
        timestamp=torch.zeros(rows, 1, dtype=torch.int64),
        gap=torch.zeros(rows, 1, dtype=torch.int64),
    )
    return EvaluationBatch(
        context=ContextBatch(history, requests),
        target=target,
        seen=seen,
        user_index=torch.arange(rows) if user_index is None else user_index,
        history_length=(seen != 0).sum(1),
    )


@pytest.fixture
def make_batch() -> Callable[..., EvaluationBatch]:
    """Call it with targets (B,), seen items (B, L) and, if need be, users (B,)."""
    return build_batch


@pytest.fixture
def catalogue() -> Callable[..., SimpleNamespace]:
    """Call it with the number of rows and of trained items: 23 and 18 by default."""
    return build_catalogue


def slow_ranks(
    scores: Tensor, target: Tensor, seen: Tensor, filter_seen: bool, stop: int
) -> list[float]:
    """The slow, obvious rank: one user at a time over the full matrix."""
    ranks = []
    for user in range(len(target)):
        wanted = int(target[user])
        out = set(seen[user].tolist()) if filter_seen else set()
        if not 2 <= wanted < stop or wanted in out:
            ranks.append(math.inf)
            continue
        rivals = [i for i in range(2, stop) if i != wanted and i not in out]
        ranks.append(1 + sum(float(scores[user, i]) >= float(scores[user, wanted]) for i in rivals))
    return ranks


@pytest.fixture
def twin_ranks() -> Callable[..., list[float]]:
    """Call it with scores (U, N), targets, seen items, the policy and the end of the catalogue."""
    return slow_ranks
