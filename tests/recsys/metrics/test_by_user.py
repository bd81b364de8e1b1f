"""Each metric equals its plain twin, and its spread that of a bootstrap which counts users anew."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from recsys.metrics.by_user import (
    auc_by_user,
    calibration_error_by_user,
    grouped_auc_by_user,
    log_loss_by_user,
    ndcg_by_user,
    normalized_entropy_by_user,
)
from recsys.metrics.calibration import (
    auc,
    expected_calibration_error,
    grouped_auc,
    log_loss,
    normalized_entropy,
)


class World:
    """150 users with 1 to 3 requests of 2 to 6 candidates; a user's taste moves all scores."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        of_user = random.integers(1, 4, 150)
        owner = np.repeat(np.arange(150), of_user)
        size = random.integers(2, 7, len(owner))
        self.requests = np.repeat(np.arange(len(owner)), size)
        self.users = owner[self.requests]
        taste = random.normal(size=150)[self.users]
        self.p = 1 / (1 + np.exp(-(taste + random.normal(size=len(self.users)))))
        self.p = self.p.round(2).clip(0.01, 0.99)  # some ties
        self.labels = (random.random(len(self.users)) < self.p**1.5).astype(int)


WORLD = World()
Metric = Callable[[np.ndarray], float]
"""Rows of candidates → the metric of them."""


def of_rows(name: str) -> Metric:
    y, p, requests = WORLD.labels, WORLD.p, WORLD.requests
    return {
        "auc": lambda rows: auc(y[rows], p[rows]),
        "gauc": lambda rows: grouped_auc(y[rows], p[rows], requests[rows])[0],
        "log_loss": lambda rows: log_loss(y[rows], p[rows]),
        "ne": lambda rows: normalized_entropy(y[rows], p[rows]),
        "ece": lambda rows: expected_calibration_error(y[rows], p[rows]),
    }[name]


VALUES = {
    "auc": auc_by_user(WORLD.labels, WORLD.p, WORLD.users),
    "gauc": grouped_auc_by_user(WORLD.labels, WORLD.p, WORLD.requests, WORLD.users),
    "log_loss": log_loss_by_user(WORLD.labels, WORLD.p, WORLD.users),
    "ne": normalized_entropy_by_user(WORLD.labels, WORLD.p, WORLD.users),
    "ece": calibration_error_by_user(WORLD.labels, WORLD.p, WORLD.users),
}


@pytest.mark.parametrize("name", VALUES)
def test_the_mean_of_the_values_is_the_metric(name: str) -> None:
    found = VALUES[name]
    assert found is not None
    assert found.shape == (150,)
    assert found.mean() == pytest.approx(of_rows(name)(np.arange(len(WORLD.users))), rel=1e-12)


@pytest.mark.parametrize("name", ["auc", "gauc", "log_loss", "ne", "ece"])
def test_their_standard_error_is_that_of_users_drawn_anew(name: str) -> None:
    """The slow twin: draw users, gather all their rows, work the metric out again."""
    random = np.random.default_rng(0)
    metric = of_rows(name)
    rows_of = [np.flatnonzero(WORLD.users == user) for user in range(150)]
    drawn = []
    for _ in range(150):
        users = random.integers(0, 150, 150)
        rows = np.concatenate([rows_of[user] for user in users])
        if name == "gauc":  # a user drawn twice is two users, each with requests of its own
            copies = np.repeat(np.arange(150), [len(rows_of[user]) for user in users])
            keys = copies * 1000 + WORLD.requests[rows]
            drawn.append(grouped_auc(WORLD.labels[rows], WORLD.p[rows], keys)[0])
        else:
            drawn.append(metric(rows))
    found = VALUES[name]
    assert found is not None
    error = found.std(ddof=1) / math.sqrt(150)
    assert error == pytest.approx(np.std(drawn, ddof=1), rel=0.2)


def test_auc_is_worked_by_hand() -> None:
    """Positives 3 and 2, negatives 1 and 2: of four pairs three are won and one is a tie."""
    labels, scores = [1, 0, 1, 0], [3.0, 1.0, 2.0, 2.0]
    found = auc_by_user(labels, scores, np.array([0, 0, 1, 1]))
    assert found is not None
    # Shares: positives 1 and .75, negatives 1 and .75; user 0 has the two good ones.
    assert found.tolist() == pytest.approx([0.875 + 2 * 0.125, 0.875 - 2 * 0.125])


def test_gauc_weighs_requests_by_their_candidates() -> None:
    """A request of 3 with AUC 1/2, one of 2 with AUC 1, one without a negative: (1.5 + 2) / 5."""
    labels, scores = [1, 0, 0, 1, 0, 1], [2.0, 1.0, 5.0, 4.0, 3.0, 9.0]
    requests, users = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 1])
    found = grouped_auc_by_user(labels, scores, requests, users)
    assert found is not None
    # User 0 adds 3 (.5 - .7) = -.6, user 1 adds 2 (1 - .7) = .6; mean weight 2.5.
    assert found.tolist() == pytest.approx([0.7 - 0.24, 0.7 + 0.24])


def test_ndcg_is_worked_by_hand() -> None:
    """User 0: second of two, and first of two; user 1: nothing; user 2: both of three in two."""
    labels = [0, 1, 1, 0, 0, 1, 1, 0]
    scores = [2.0, 1.0, 2.0, 1.0, 1.0, 3.0, 1.0, 2.0]
    requests, users = np.array([0, 0, 1, 1, 2, 3, 3, 3]), np.array([0, 0, 0, 0, 1, 2, 2, 2])
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    found = ndcg_by_user(labels, scores, requests, users, k=10)
    assert found.tolist() == pytest.approx([(second + 1) / 2, (1 + third) / (1 + second)])
    short = ndcg_by_user(labels, scores, requests, users, k=1)
    assert short.tolist() == pytest.approx([0.5, 1])
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        ndcg_by_user(labels, scores, requests, users, k=0)


def test_ndcg_of_ties_is_the_mean_over_their_orders() -> None:
    labels, scores = np.array([1, 0, 0, 1, 0]), np.array([2.0, 2, 2, 1, 1])
    one = np.zeros(5, dtype=np.int64)
    found = ndcg_by_user(labels, scores, one, one, k=3)
    every = [
        ndcg_by_user(labels, scores + 1e-3 * np.array(order), one, one, k=3)[0]
        for order in itertools.permutations(range(5))
    ]
    assert found[0] == pytest.approx(np.mean(every))


def test_where_all_labels_are_alike_nothing_is_claimed() -> None:
    users = np.array([0, 1])
    for labels in ([0, 0], [1, 1]):
        assert auc_by_user(labels, [1.0, 2.0], users) is None
        assert grouped_auc_by_user(labels, [1.0, 2.0], users, users) is None
        assert normalized_entropy_by_user(labels, [0.1, 0.2], users) is None
    assert grouped_auc_by_user([0, 1], [1.0, 2.0], users, users) is None  # one label a request
