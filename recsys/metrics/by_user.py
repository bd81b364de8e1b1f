"""Metrics of candidates as one value a user, so that their mean is the metric of all candidates.

An AUC, or a loss over its base rate's, is no mean over users. But how much each user moves it is:
with user u counted once more, a metric m changes by ``d_u / U`` to first order, and the values
``m + d_u`` have the mean m and the metric's own spread. Bootstrap intervals, paired differences and
the smallest detectable difference (``metrics/interval.py``) then hold for these metrics as they
stand, with a user's candidates always drawn together.

Arguments are flat: ``labels`` 0 or 1, ``scores`` or ``probabilities``, and ``users`` 0 … U - 1, all
(n,), a row a candidate. Every function returns (U,) float64, or None where its metric does not
exist (all labels alike).

Source:
    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997, for the AUC;
    the rest is the linearisation of a ratio of two sums.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.metrics.calibration import auc_of_groups, log_losses

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def auc_by_user(labels: ArrayLike, scores: ArrayLike, users: Ints) -> Floats | None:
    """Chance that a positive of anybody is scored above a negative of anybody, ties one half.

    Args:
        labels: 0 or 1, (n,).
        scores: Finite numbers, (n,).
        users: 0 … U - 1, (n,).

    Returns:
        (U,), their mean the AUC.

    Example:
        >>> float(auc_by_user([1, 0, 1, 0], [3.0, 1.0, 2.0, 2.0], np.array([0, 0, 1, 1])).mean())
        0.875
    """
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    positives, negatives = y.sum(), len(y) - y.sum()
    if not positives or not negatives:
        return None
    order = np.argsort(s, kind="stable")
    new = np.r_[True, np.diff(s[order]) != 0]
    tie = np.empty(len(y), dtype=np.int64)
    tie[order] = np.cumsum(new) - 1
    # Of the other class: how many lie below, a tie counting one half.
    beaten = np.where(y == 1, _below(tie, 1 - y), positives - _below(tie, y))
    share = beaten / np.where(y == 1, negatives, positives)
    value = float(share[y == 1].mean())
    size = users.max() + 1
    gain = np.where(y == 1, (share - value) / positives, (share - value) / negatives)
    moved: Floats = value + size * np.bincount(users, weights=gain, minlength=size)
    return moved


def grouped_auc_by_user(
    labels: ArrayLike, scores: ArrayLike, requests: Ints, users: Ints
) -> Floats | None:
    """AUC inside each request, averaged by its number of candidates (GAUC).

    Requests whose labels are all alike have no AUC and no weight.

    Args:
        labels: 0 or 1, (n,).
        scores: Finite numbers, (n,).
        requests: 0 … R - 1, (n,).
        users: 0 … U - 1, (n,).

    Returns:
        (U,), their mean the GAUC.

    Example:
        >>> labels, scores = [1, 0, 0, 1, 0], [2.0, 1.0, 5.0, 4.0, 3.0]
        >>> users = np.array([0, 0, 0, 1, 1])
        >>> float(grouped_auc_by_user(labels, scores, users, users).mean())
        0.7
    """
    each, size = auc_of_groups(labels, scores, requests)
    owner = np.zeros(len(each), dtype=np.int64)
    owner[requests] = users
    usable = ~np.isnan(each)
    if not usable.any():
        return None
    weight = np.where(usable, size, 0.0)
    num_users = users.max() + 1
    top = np.bincount(owner, weights=np.where(usable, each, 0.0) * weight, minlength=num_users)
    return _ratio(top, np.bincount(owner, weights=weight, minlength=num_users))


def log_loss_by_user(labels: ArrayLike, probabilities: ArrayLike, users: Ints) -> Floats:
    """Mean negative log likelihood of the labels, nats a candidate.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).
        users: 0 … U - 1, (n,).

    Returns:
        (U,), their mean the log loss.
    """
    return _ratio(np.bincount(users, weights=log_losses(labels, probabilities)), np.bincount(users))


def normalized_entropy_by_user(
    labels: ArrayLike, probabilities: ArrayLike, users: Ints
) -> Floats | None:
    """Log loss over that of always predicting the base rate; below 1 beats the base rate.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).
        users: 0 … U - 1, (n,).

    Returns:
        (U,), their mean the normalised entropy.
    """
    y = np.asarray(labels, dtype=np.float64)
    rate = float(y.mean())
    if rate in (0.0, 1.0):
        return None
    entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
    loss = log_loss_by_user(y, probabilities, users)
    rates = _ratio(np.bincount(users, weights=y), np.bincount(users))
    mean = float(loss.mean())
    # The quotient L / H(p), linearised: dL / H - L H'(p) dp / H².
    slope = math.log((1 - rate) / rate)
    moved: Floats = (
        mean + (loss - mean) - mean * slope * (rates - rate) / entropy
    ) / entropy  # mean / entropy is the metric
    return moved


def calibration_error_by_user(
    labels: ArrayLike, probabilities: ArrayLike, users: Ints, *, num_bins: int = 10
) -> Floats:
    """Mean gap between what was predicted and what happened, over bins of equal size.

    The bins are those of all candidates. Near 0, where gaps change their sign from sample to
    sample, the spread of these values is larger than the metric's.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).
        users: 0 … U - 1, (n,).
        num_bins: Bins, at least 1.

    Returns:
        (U,), their mean the expected calibration error.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    first = np.searchsorted(np.sort(p), p, side="left")  # equal probabilities share a bin
    bins = first * num_bins // len(p)
    sign = np.sign(np.bincount(bins, weights=y - p))[bins]
    return _ratio(np.bincount(users, weights=sign * (y - p)), np.bincount(users))


def ndcg_by_user(
    labels: ArrayLike, scores: ArrayLike, requests: Ints, users: Ints, *, k: int
) -> Floats:
    """NDCG of each list that holds a positive, averaged within its user first.

    Candidates of equal scores share the mean discount of their places, as though every order of
    them were tried: an AUC counts a tie by half, and trees give many. A scorer that tells nothing
    apart gets what chance would give it.

    Args:
        labels: 0 or 1, (n,).
        scores: What lists are ordered by, finite, (n,).
        requests: 0 … R - 1, (n,).
        users: 0 … U - 1, (n,).
        k: Length of the list, at least 1.

    Returns:
        (users with a positive,), users weighing alike.

    Raises:
        ValueError: If ``k`` is below 1.

    Source:
        McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in
        the Presence of Tied Scores", ECIR 2008.

    Example:
        >>> one = np.zeros(2, dtype=np.int64)
        >>> ndcg_by_user([1, 0], [3.0, 3.0], one, one, k=1).tolist()
        [0.5]
    """
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1.")
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    order = np.lexsort((-s, requests))
    y, s, request, user = y[order], s[order], requests[order], users[order]
    size = np.bincount(request)
    place = np.arange(len(y)) - (np.cumsum(size) - size)[request]
    discount = np.where(place < k, 1 / np.log2(2 + place), 0.0)
    tie = np.cumsum(np.r_[True, (np.diff(request) != 0) | (np.diff(s) != 0)]) - 1
    shared = (np.bincount(tie, weights=discount) / np.bincount(tie))[tie]
    gain = np.bincount(request, weights=y * shared)
    positives = np.bincount(request, weights=y).astype(np.int64)
    ideal = np.cumsum(1 / np.log2(2 + np.arange(k)))
    owner = np.zeros(len(size), dtype=np.int64)
    owner[request] = user
    kept = positives > 0
    each = gain[kept] / ideal[np.minimum(positives[kept], k) - 1]
    total = np.bincount(owner[kept], weights=each)
    number = np.bincount(owner[kept])
    mean: Floats = total[number > 0] / number[number > 0]
    return mean


def _below(tie: Ints, counted: Floats) -> Floats:
    """Of the rows counted: how many have a lower tie number than each row, equal ones by half."""
    in_tie = np.bincount(tie, weights=counted)
    before: Floats = (np.cumsum(in_tie) - in_tie / 2)[tie]
    return before


def _ratio(top: NDArray[np.generic], bottom: NDArray[np.generic]) -> Floats:
    """Values a user whose mean is sum(top) / sum(bottom), linearised."""
    a, b = top.astype(np.float64), bottom.astype(np.float64)
    value = a.sum() / b.sum()
    moved: Floats = value + (a - value * b) / b.mean()
    return moved
