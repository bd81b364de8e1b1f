"""Lists of a few candidates, scorers that answer by heart, metrics worked by hand."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch, History, Requests
from recsys.context.impressions import RankingBatch
from recsys.evaluation.ranking import RankingTable, ranking_metrics_by_user, score_lists
from recsys.ranking.calibrate import Calibration

TASKS = ("click", "order")


def batch(items: Sequence[Sequence[int]], levels: Sequence[Sequence[int]], first: int = 0):
    """A list a user; a request's number is its user's."""
    rows, width = len(items), max(len(row) for row in items)

    def padded(values: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in values])[:, None, None]

    nothing = torch.zeros(rows, 1, dtype=torch.long)
    history = History(*[nothing] * 5, lengths=nothing[:, 0])
    users = torch.arange(first, first + rows)
    requests = Requests(
        cut=nothing,
        is_real=nothing == 0,
        timestamp=users[:, None] + 1000,
        gap=nothing,
        candidates=CandidateSet(padded(items), padded([range(1, len(r) + 1) for r in items])),
    )
    return RankingBatch(ContextBatch(history, requests), padded(levels), users, users)


@dataclasses.dataclass
class ById:
    """Logits are the items' ids, of the second task ten times that."""

    name: str = "by_id"
    reads_group: bool = False
    asked: int = 0
    positions: list[Tensor | None] = dataclasses.field(default_factory=list)

    def score(self, context: ContextBatch) -> Tensor:
        candidates = context.requests.candidates
        assert candidates is not None
        self.asked += 1
        self.positions.append(candidates.position)
        return torch.stack((candidates.item, 10 * candidates.item), dim=-1).float()


class ByGroup(ById):
    """Logits are the ids less the sum of the group's."""

    def score(self, context: ContextBatch) -> Tensor:
        found = super().score(context)
        return found - found.sum(dim=3, keepdim=True)


ITEMS, LEVELS = [[5, 9, 3, 7, 4], [6, 8]], [[1, 0, 0, 2, 0], [0, 1]]


def table(**changes: object) -> RankingTable:
    """Two users: a list of three with a click on 5 and an order of 7, a list of two."""
    found = RankingTable(
        tasks=TASKS,
        request=np.array([3, 8]),
        user_index=np.array([0, 4]),
        timestamp=np.array([10, 20]),
        offsets=np.array([0, 3, 5]),
        item=np.array([5, 6, 7, 8, 9]),
        level=np.array([1, 0, 2, 0, 1]),
        logits={"a": np.zeros((5, 2), np.float32)},
        regrouped={},
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def test_candidates_keep_their_lists_their_order_and_their_logits() -> None:
    scorers = [ById(), ByGroup(name="by_group", reads_group=True)]
    batches = [batch([[2]], [[0]], first=2), batch(ITEMS, LEVELS)]
    found = score_lists(scorers, batches, TASKS, group_size=2, salts=3)
    assert found.request.tolist() == [0, 1, 2]  # whatever order the batches came in
    assert found.user_index.tolist() == [0, 1, 2]
    assert found.timestamp.tolist() == [1000, 1001, 1002]
    assert found.item.tolist() == [5, 9, 3, 7, 4, 6, 8, 2]
    assert found.level.tolist() == [1, 0, 0, 2, 0, 0, 1, 0]
    assert found.offsets.tolist() == [0, 5, 7, 8]
    assert found.owner.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert found.logits["by_id"].tolist() == [[x, 10 * x] for x in found.item.tolist()]
    # An item alone in its list is alone in its group, and two of a list of two are together.
    assert found.logits["by_group"][7].tolist() == [0, 0]
    assert found.logits["by_group"][5:7, 0].tolist() == [-8, -6]


def test_scorers_that_read_groups_are_asked_under_every_salt_and_no_position_is_told() -> None:
    alone, grouped = ById(), ByGroup(name="by_group", reads_group=True)
    found = score_lists([alone, grouped], [batch(ITEMS, LEVELS)], TASKS, group_size=2, salts=4)
    assert (alone.asked, grouped.asked) == (1, 4)
    assert alone.positions == [None]
    assert list(found.regrouped) == ["by_group"]
    assert len(found.regrouped["by_group"]) == 3
    ways = [found.logits["by_group"], *found.regrouped["by_group"]]
    assert len({w.tobytes() for w in ways}) > 1
    again = score_lists([grouped], [batch(ITEMS, LEVELS)], TASKS, group_size=2, salts=1)
    assert np.array_equal(again.logits["by_group"], found.logits["by_group"])


def test_what_scorers_get_wrong_is_told_by_name() -> None:
    class Wrong(ById):
        def score(self, context: ContextBatch) -> Tensor:
            return super().score(context)[..., :1]

    class Broken(ById):
        def score(self, context: ContextBatch) -> Tensor:
            return super().score(context) * math.nan

    lists = [batch(ITEMS, LEVELS)]
    with pytest.raises(ValueError, match=r"'w' must return logits of shape \(2, 1, 3, 2, 2\), not"):
        score_lists([Wrong(name="w")], lists, TASKS, group_size=2)
    with pytest.raises(ValueError, match="'b' returned logits that are not finite for 7 of 7"):
        score_lists([Broken(name="b")], lists, TASKS, group_size=2)
    with pytest.raises(ValueError, match=r"unique names, not \['by_id', 'by_id'\]"):
        score_lists([ById(), ById()], lists, TASKS, group_size=2)
    with pytest.raises(ValueError, match=r"salts \(0\) must be at least 1"):
        score_lists([ById()], lists, TASKS, group_size=2, salts=0)
    with pytest.raises(ValueError, match="no lists to rank"):
        score_lists([ById()], [], TASKS, group_size=2)


def test_tables_of_the_same_lists_merge_and_others_do_not() -> None:
    both = table().merge(table(logits={"b": np.ones((5, 2), np.float32)}))
    assert list(both.logits) == ["a", "b"]
    with pytest.raises(ValueError, match=r"unique; both tables hold \['a'\]"):
        table().merge(table())
    with pytest.raises(ValueError, match="different lists"):
        table().merge(table(item=np.array([5, 6, 7, 8, 2])))


def test_metrics_of_each_task_are_worked_by_hand() -> None:
    """User 0 sees 5 clicked, 6, 7 ordered with logits 1, 2, 3; user 1 sees 8, 9 clicked: 0, 4."""
    logits = np.array([[1, 0], [2, 0], [3, 2], [0, 1], [4, 0]], dtype=np.float32)
    score = np.array([0.2, 0.2, 0.1, 0.5, 0.4])
    found = ranking_metrics_by_user(table(), logits, Calibration.identity(TASKS), score)
    mean = {name: float(values.mean()) for name, values in found.items()}
    # Clicks 1, 3, 4 against 2, 0: won are 1>0, 3>2, 3>0, 4>2, 4>0, lost is 1<2.
    assert mean["click/auc"] == pytest.approx(5 / 6)
    # List 0: 3>2 of two pairs, three candidates; list 1: all, two candidates.
    assert mean["click/gauc"] == pytest.approx((3 * 0.5 + 2 * 1) / 5)
    # The order has 2, above 0, 0, 1, 0; only list 0 holds both labels.
    assert mean["order/auc"] == 1
    assert mean["order/gauc"] == 1
    p = 1 / (1 + np.exp(-logits[:, 1].astype(np.float64)))
    loss = -(np.log(p[2]) + np.log(1 - p[[0, 1, 3, 4]]).sum()) / 5
    assert mean["order/log_loss"] == pytest.approx(loss)
    base = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert mean["order/normalized_entropy"] == pytest.approx(loss / base)
    # By score: 5* and 6 share the first two places, 7* has the third; list 1 is 8, 9*.
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    first = ((1 + second) / 2 + third) / (1 + second)
    assert mean["click/ndcg@10"] == pytest.approx((first + second) / 2)
    # Of the order only list 0 counts, so only one user does.
    assert found["order/ndcg@10"].tolist() == pytest.approx([third])
    assert len(found["order/auc"]) == 2


def test_users_weigh_alike_in_ndcg_however_many_lists_they_have() -> None:
    score = np.array([3.0, 2, 1, 2, 1])
    found = table(user_index=np.array([4, 4]), offsets=np.array([0, 3, 5]))
    values = ranking_metrics_by_user(
        found, np.zeros((5, 2), np.float32), Calibration.identity(TASKS), score
    )
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    lists = ((1 + third) / (1 + second), second)
    assert values["click/ndcg@10"].tolist() == pytest.approx([sum(lists) / 2])


def test_a_task_that_nobody_reached_has_no_metrics() -> None:
    found = ranking_metrics_by_user(
        table(level=np.array([1, 0, 1, 0, 1])),
        np.zeros((5, 2), np.float32),
        Calibration.identity(TASKS),
        np.zeros(5),
    )
    assert {name.split("/")[0] for name in found} == {"click"}
