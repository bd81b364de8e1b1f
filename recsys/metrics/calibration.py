"""Metrics of predicted probabilities, for the ranking stage: are they right, do they order well.

Labels are 0 or 1, probabilities in 0…1, both (n,), a row an impression.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics

Floats = NDArray[np.float64]


def log_loss(labels: ArrayLike, probabilities: ArrayLike, *, floor: float = 1e-7) -> float:
    """Mean negative log likelihood of the labels.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).
        floor: Probabilities are kept this far from 0 and 1, so that one wrong certainty costs 16
            nats and not infinity.

    Returns:
        Nats an impression.

    Raises:
        ValueError: If the arrays are empty, differ in length, or hold other values.

    Example:
        >>> round(log_loss([1, 0], [0.5, 0.5]), 4)  # log 2
        0.6931
    """
    return float(log_losses(labels, probabilities, floor=floor).mean())


def log_losses(labels: ArrayLike, probabilities: ArrayLike, *, floor: float = 1e-7) -> Floats:
    """Negative log likelihood of each label.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).
        floor: Probabilities are kept this far from 0 and 1.

    Returns:
        Nats, (n,).

    Raises:
        ValueError: If the arrays are empty, differ in length, or hold other values.
    """
    y, p = _checked(labels, probabilities)
    p = np.clip(p, floor, 1 - floor)
    return -np.where(y == 1, np.log(p), np.log1p(-p))


def normalized_entropy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Log loss over that of always predicting the base rate; below 1 beats the base rate.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).

    Returns:
        A ratio; NaN where all labels are alike.

    Raises:
        ValueError: If the arrays are empty, differ in length, or hold other values.

    Source:
        He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014.
    """
    y, p = _checked(labels, probabilities)
    rate = float(y.mean())
    if rate in (0.0, 1.0):
        return math.nan
    return log_loss(y, p) / log_loss(y, np.full(len(y), rate))


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, num_bins: int = 10
) -> float:
    """Mean gap between what was predicted and what happened, over bins of equal size.

    Rows are sorted by probability and cut into bins of (nearly) the same number of rows, which
    suits click rates of a few per cent better than bins of equal width; equal probabilities stay
    in one bin.

    Args:
        labels: 0 or 1, (n,).
        probabilities: Predicted probability of a 1, (n,).
        num_bins: Bins, at least 1.

    Returns:
        A number in 0…1; 0 is perfect.

    Raises:
        ValueError: If ``num_bins`` is below 1, or the arrays are empty, differ in length, or hold
            other values.

    Example:
        >>> expected_calibration_error([1, 0, 1, 1], [0.5, 0.5, 0.75, 0.75], num_bins=2)
        0.125
    """
    if num_bins < 1:
        raise ValueError(f"num_bins ({num_bins}) must be at least 1.")
    y, p = _checked(labels, probabilities)
    order = np.argsort(p, kind="stable")
    y, p = y[order], p[order]
    first = np.searchsorted(p, p, side="left")  # where the run of equal probabilities starts
    bins = first * num_bins // len(p)
    gap = np.bincount(bins, weights=y - p, minlength=num_bins)
    return float(np.abs(gap).sum() / len(p))


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Chance that a positive is scored above a negative, a tie counting one half.

    Args:
        labels: 0 or 1, (n,).
        scores: Any finite numbers, (n,).

    Returns:
        A number in 0…1; NaN where all labels are alike.

    Raises:
        ValueError: If the arrays are empty, differ in length, or hold other values.
    """
    y, s = _checked(labels, scores, bounded=False)
    return float(metrics.roc_auc_score(y, s)) if 0 < y.sum() < len(y) else math.nan


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> tuple[float, int]:
    """AUC inside each group (a user or a request), averaged by the group's number of rows (GAUC).

    Args:
        labels: 0 or 1, (n,).
        scores: Any finite numbers, (n,).
        groups: A key for each row, (n,).

    Returns:
        The mean, NaN where no group has both labels, and how many groups were left out because
        their labels are all alike.

    Raises:
        ValueError: If the arrays are empty, differ in length, or hold other values.

    Source:
        Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018. The sum
        of ranks form of the AUC, ties at their mean rank, is Mann and Whitney's.

    Example:
        >>> grouped_auc([1, 0, 0, 1, 1], [2.0, 1.0, 5.0, 4.0, 3.0], [0, 0, 1, 1, 2])
        (0.5, 1)
    """
    each, size = auc_of_groups(labels, scores, groups)
    usable = ~np.isnan(each)
    if not usable.any():
        return math.nan, len(size)
    return float(np.average(each[usable], weights=size[usable])), int((~usable).sum())


def auc_of_groups(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike
) -> tuple[Floats, NDArray[np.int64]]:
    """AUC inside each group, a tie counting one half.

    Args:
        labels: 0 or 1, (n,).
        scores: Any finite numbers, (n,).
        groups: A key for each row, (n,).

    Returns:
        By ascending key: the AUC, NaN where a group's labels are all alike, and the rows.

    Raises:
        ValueError: If the arrays are empty, differ in length, or hold other values.
    """
    y, s = _checked(labels, scores, bounded=False)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(group) != len(y):
        raise ValueError(f"groups ({len(group)} rows) must have the rows of labels ({len(y)}).")
    order = np.lexsort((s, group))
    y, s, group = y[order], s[order], group[order]
    size = np.bincount(group)
    new = np.r_[True, (group[1:] != group[:-1]) | (s[1:] != s[:-1])]
    tie = np.cumsum(new) - 1
    position = np.arange(len(y), dtype=np.float64)
    rank = (np.bincount(tie, weights=position) / np.bincount(tie))[tie]
    rank = rank - np.r_[0, np.cumsum(size)[:-1]][group] + 1
    positives = np.bincount(group, weights=y)
    negatives = size - positives
    pairs = positives * negatives
    total = np.bincount(group, weights=rank * y) - positives * (positives + 1) / 2
    return np.where(pairs > 0, total / np.maximum(pairs, 1), math.nan), size


def _checked(
    labels: ArrayLike, values: ArrayLike, *, bounded: bool = True
) -> tuple[Floats, Floats]:
    y, v = np.asarray(labels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or y.shape != v.shape or not len(y):
        raise ValueError(
            f"labels {y.shape} and predictions {v.shape} must be of one shape (n,), n at least 1."
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1; found {float(y[~np.isin(y, (0, 1))][0]):g}.")
    if not np.isfinite(v).all():
        raise ValueError(f"predictions must be finite; found {float(v[~np.isfinite(v)][0])}.")
    if bounded and (v.min() < 0 or v.max() > 1):
        raise ValueError(
            f"probabilities must be in 0…1; found {float(v.min()):g} to {float(v.max()):g}."
        )
    return y, v
