from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from line_world import HISTORIES, TIMES, LastItem, bucket_of, catalogue_of, retriever_of

from recsys.cascade.answer import Cascade, Options
from recsys.ranking.calibrate import Calibration, TaskCalibration
from recsys.ranking.policy import Available, Diversity, Policy, Quota


def cascade_of(
    *tasks: str, calibration: Calibration | None = None, **changes: Any
) -> tuple[Cascade, LastItem]:
    retriever, model = retriever_of(len(tasks), **changes)
    found = calibration or Calibration.identity(tasks or ("target",))
    return Cascade(retriever, catalogue_of(), found), model


def ids_of(folder: Path, cascade: Cascade, rows: list[int] | None = None, **options: Any) -> Any:
    bucket = bucket_of(folder, HISTORIES, TIMES)
    at = None if rows is None else torch.tensor(rows)
    return cascade.answer(bucket, Options(**options), rows=at)[0].ids.tolist()


def test_known_users_get_neighbours_and_the_others_what_is_popular(tmp_path: Path) -> None:
    cascade, model = cascade_of()
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    lists, effects = cascade.answer(bucket, Options(k=2, batch_size=2))
    # Nearest to the last item among those not seen; popular: 3 and 4 tie with 9 events.
    assert lists.ids.tolist() == [[4, 5], [3, 4], [3, 4], [-1, -1], [3, 2]]
    assert lists.is_popular.tolist() == [False, True, True, False, False]
    assert lists.scores[1].tolist() == [9.0, 9.0]
    assert lists.scores[3].tolist() == [-torch.inf] * 2
    assert torch.equal(lists.retrieval[0], lists.scores[0])
    assert lists.retrieval[1].isnan().all()
    assert lists.probabilities.shape == (5, 2, 0)
    assert not effects
    assert not model.reads  # the retrieval alone takes the shorter way


def test_rows_come_back_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    for cascade, _ in (cascade_of(), cascade_of("click", "order")):
        whole = ids_of(tmp_path, cascade, k=2)
        part = ids_of(tmp_path, cascade, [4, 1, 0], k=2, batch_size=1)
        assert part == [whole[4], whole[1], whole[0]]


def test_events_at_or_after_the_moment_are_not_seen(tmp_path: Path) -> None:
    for tasks in ((), ("click",)):
        cascade, model = cascade_of(*tasks)
        bucket = bucket_of(tmp_path, HISTORIES, TIMES)
        lists, _ = cascade.answer(bucket, Options(k=4, as_of=200))
        assert lists.is_popular.tolist() == [False, True, True, False, True]
        # Item 2 was read last, item 3 not seen yet.
        assert lists.ids[0].tolist() == ([5, 4, 3, -1] if tasks else [3, 4, 5, -1])
        assert model.gaps == [1 + 6, 1 + 7]  # 100 s and 160 s since the last event: 2**6, 2**7
        with pytest.raises(ValueError, match=r"as_of \(200\) needs times"):
            cascade_of(*tasks, has_time=False)[0].answer(bucket, Options(k=1, as_of=200))


def test_seen_items_stay_in_and_untrained_ones_compete_when_asked_for(tmp_path: Path) -> None:
    found = ids_of(tmp_path, cascade_of()[0], k=1, filter_seen=False)
    assert [found[0], found[3], found[4]] == [[3], [2], [4]]
    found = ids_of(tmp_path, cascade_of(candidates="all")[0], k=5)
    assert 6 in found[0]
    assert found[1] == [3, 4, 2, 5, 6]


def test_the_allow_list_binds_every_source(tmp_path: Path) -> None:
    allow = torch.tensor([True, True, False, False, False, True, True])
    expected = [[5, -1], [5, -1], [5, -1], [-1, -1], [5, -1]]
    assert ids_of(tmp_path, cascade_of()[0], k=2, allow=allow) == expected
    assert ids_of(tmp_path, cascade_of("click")[0], k=2, allow=allow) == expected


def test_retrieved_candidates_are_ranked_and_the_others_follow(tmp_path: Path) -> None:
    cascade, model = cascade_of("click", "order", candidates="all")
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    options = Options(k=4, num_candidates=2, filter_seen=False, batch_size=2)
    lists, _ = cascade.answer(bucket, options)
    # User 0 read item 3 last: 3 and 2 are its nearest, ranked by id; 4 and 5 follow.
    assert lists.ids[0].tolist() == [3, 2, 4, 5]
    assert lists.source[0].tolist() == [0, 0, 1, 1]
    assert lists.source[1].tolist() == [2] * 4
    order = 1 / (1 + np.exp(-np.array([1.5, 1.0])))  # logits are the ids, halved for the order
    np.testing.assert_allclose(lists.scores[0, :2], order, rtol=1e-6)
    np.testing.assert_allclose(lists.probabilities[0, :2, 1], order, rtol=1e-6)
    assert lists.probabilities[0, 2:].isnan().all()
    assert torch.equal(lists.scores[0, 2:], lists.retrieval[0, 2:])
    assert lists.probabilities[1].isnan().all()
    assert model.reads == 2  # one reading a batch, for both stages


def test_a_user_of_whom_nothing_is_left_has_an_empty_list(tmp_path: Path) -> None:
    # User 3 has seen every trained item.
    assert ids_of(tmp_path, cascade_of("click")[0], [3], k=2) == [[-1, -1]]
    policy = Policy((Available(torch.zeros(7, dtype=torch.bool)),))
    assert ids_of(tmp_path, cascade_of("click")[0], k=1, policy=policy) == [[-1]] * 5


def test_groups_depend_on_the_user_and_the_items_alone(tmp_path: Path) -> None:
    many, few = cascade_of("click", candidates="all"), cascade_of("click", candidates="all")
    ids_of(tmp_path, many[0], k=1, filter_seen=False)
    ids_of(tmp_path, few[0], [4, 3, 0], k=1, filter_seen=False, batch_size=1)
    assert sorted(many[1].groups) == sorted(few[1].groups)
    assert all(len(group) == 2 for group in many[1].groups)


def test_the_ranking_may_be_left_out(tmp_path: Path) -> None:
    with_ranker, without = cascade_of("click")[0], cascade_of()[0]
    assert with_ranker.stages(Options(k=1)) == "cascade"
    found = ids_of(tmp_path, with_ranker, k=3, stages="retrieval")
    assert found == ids_of(tmp_path, without, k=3)


def test_what_a_model_cannot_do_is_named() -> None:
    with pytest.raises(ValueError, match=r"stages \('cascade'\) needs a model with a ranking"):
        cascade_of()[0].stages(Options(k=1, stages="cascade"))
    with pytest.raises(ValueError, match=r"final_score \('price'\) orders ranked items"):
        cascade_of()[0].stages(Options(k=1, final_score="price"))
    for name in ("k", "num_candidates", "batch_size"):
        with pytest.raises(ValueError, match=rf"{name} \(0\) must be at least 1"):
            Options(**{"k": 1, name: 0})


def test_a_formula_orders_by_item_columns_too(tmp_path: Path) -> None:
    cascade, _ = cascade_of("click", "order")
    # Prices in the units of the logs: 18, 16, 14, 12 for items 2 … 5.
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    options = Options(k=4, final_score="0 * p_click + price", filter_seen=False)
    lists, _ = cascade.answer(bucket, options)
    assert lists.ids[0].tolist() == [2, 3, 4, 5]
    assert lists.scores[0].tolist() == [18.0, 16.0, 14.0, 12.0]
    found = ids_of(tmp_path, cascade, k=4, final_score="retrieval_score", filter_seen=False)
    assert found[0] == [3, 2, 4, 5]
    with pytest.raises(ValueError, match=r"names the columns \['p_view'\]"):
        cascade.answer(bucket, Options(k=1, final_score="p_view"))


def test_probabilities_are_calibrated(tmp_path: Path) -> None:
    calibration = Calibration(tasks={"click": TaskCalibration(slope=-1.0, intercept=3.0)})
    cascade, _ = cascade_of("click", calibration=calibration)
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    lists, _ = cascade.answer(bucket, Options(k=2, filter_seen=False))
    assert lists.ids[0].tolist() == [2, 3]  # the slope turns the order around
    np.testing.assert_allclose(lists.scores[0], [1 / (1 + np.exp(-1)), 0.5], rtol=1e-6)


def test_items_that_cannot_be_had_leave_no_gap_and_the_policy_tells_whom_they_touched(
    tmp_path: Path,
) -> None:
    available = torch.ones(7, dtype=torch.bool)
    available[3] = False
    policy = Policy((Available(available),))
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    for tasks in ((), ("click",)):
        cascade, _ = cascade_of(*tasks)
        options = Options(k=2, num_candidates=2, policy=policy)
        lists, effects = cascade.answer(bucket, options)
        # Popular 3 for users 1 and 2, and the nearest of user 4.
        assert effects == {"available.users": 3, "available.items": 3}
        assert lists.ids[1].tolist() == [4, 2]
        assert lists.ids[4].tolist() == ([5, 2] if tasks else [2, 5])
        assert lists.ids[0].tolist() == ([5, 4] if tasks else [4, 5])


def test_rules_act_after_the_ranking_on_more_than_k(tmp_path: Path) -> None:
    limit = Quota.at_most(catalogue_of().coarse, 1, name="category")
    cascade, _ = cascade_of("click")
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    options = Options(k=2, policy=Policy((limit,)), filter_seen=False, num_candidates=3)
    lists, effects = cascade.answer(bucket, options)
    # User 0's candidates are 3, 2, 4 in one category and 5, beyond them, in another.
    assert lists.ids[0].tolist() == [4, 5]
    assert lists.source[0].tolist() == [0, 1]
    assert lists.ids[1].tolist() == [3, 5]
    assert effects["category.users"] == 5
    variety = Diversity(catalogue_of().coarse, 0.9)
    again, _ = cascade.answer(bucket, Options(k=2, policy=Policy((variety,)), filter_seen=False))
    assert again.ids[1].tolist() == [3, 5]
