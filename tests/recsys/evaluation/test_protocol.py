import pytest

from recsys.evaluation.baselines import PopularScorer
from recsys.evaluation.protocol import EvaluationProtocol, Scorer, TargetScorer, candidate_range
from recsys.schema import Manifest, SplitSpec


def test_the_protocol_says_who_is_tested_against_what() -> None:
    manifest = Manifest(
        num_items=12, num_trained_items=7, split=SplitSpec(target="all"), target_behavior="order"
    )
    found = EvaluationProtocol.of(
        manifest, part="test", candidates="trained", filter_seen=True, num_users=1234
    )
    assert found.num_candidates == 7
    for words in (
        "every event of each user",
        "of behavior 'order' or stronger",
        "a global time split",
        "1,234 users",
        "7 items",
        "taken out",
        "Ties count against the target",
    ):
        assert words in found.sentences()


def test_leave_one_out_asks_for_the_last_event() -> None:
    manifest = Manifest(num_items=9, num_trained_items=7, split=SplitSpec(kind="leave_one_out"))
    found = EvaluationProtocol.of(
        manifest, part="test", candidates="all", filter_seen=False, num_users=3
    )
    assert (found.split, found.target, found.num_candidates) == ("leave_one_out", "last", 7)
    assert "stay in" in found.sentences()


def test_candidates_leave_the_reserved_rows_out() -> None:
    assert candidate_range("trained", num_trained=3, num_items=9) == (2, 5)
    assert candidate_range("all", num_trained=3, num_items=9) == (2, 9)
    with pytest.raises(ValueError, match="0 trained items"):
        candidate_range("trained", num_trained=0, num_items=9)


def test_baselines_obey_the_scorer_protocols() -> None:
    scorer = PopularScorer([1, 2])
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, TargetScorer)
