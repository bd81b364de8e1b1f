import pytest
import torch

from recsys.data.negatives import TableSampler

COUNT = torch.tensor([100, 100, 8, 0, 1, 16, 0])  # the reserved rows and two untrained items
DRAWS = 100_000


@pytest.mark.parametrize(
    ("kind", "power", "weight"),
    [
        ("uniform", 0.75, [1, 1, 1]),
        ("popularity", 1.0, [8, 1, 16]),
        ("popularity", 0.75, [8**0.75, 1, 8]),
        ("popularity", 0.0, [1, 1, 1]),
    ],
)
def test_draws_come_as_often_as_their_stated_probability(
    kind: str, power: float, weight: list[float]
) -> None:
    sampler = TableSampler(COUNT, kind, power=power)
    probability = torch.zeros(7)
    probability[[2, 4, 5]] = torch.tensor(weight) / sum(weight)
    ids, log_q = sampler.sample(DRAWS)
    share = torch.bincount(ids, minlength=7) / DRAWS
    torch.testing.assert_close(share, probability, atol=0.01, rtol=0)
    assert (share[probability == 0] == 0).all()
    torch.testing.assert_close(log_q, probability.log()[ids])
    assert torch.equal(sampler.log_q(ids), log_q)
    assert sampler.log_q(torch.tensor([[0, 3]])).tolist() == [[-torch.inf, -torch.inf]]


def test_a_restored_generator_state_draws_the_same_ids() -> None:
    sampler = TableSampler(COUNT)
    state = torch.get_rng_state()
    first = sampler.sample(50)[0]
    torch.set_rng_state(state)
    assert torch.equal(sampler.sample(50)[0], first)


def test_draws_on_the_very_edge_of_a_share_never_give_an_item_of_probability_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edges = torch.tensor([0.0, 8 / 25, 9 / 25, 1 - 2**-53], dtype=torch.float64)
    sampler = TableSampler(COUNT, "popularity", power=1.0)
    monkeypatch.setattr(torch, "rand", lambda *size, dtype: edges)
    ids, log_q = sampler.sample(4)
    assert ids.tolist() == [2, 4, 5, 5]
    assert log_q.isfinite().all()


def test_the_counts_handed_in_stay_as_they_were() -> None:
    count = COUNT.clone()
    TableSampler(count, "popularity").sample(3)
    assert torch.equal(count, COUNT)


def test_a_catalogue_without_training_events_is_refused() -> None:
    with pytest.raises(ValueError, match="no item with a training event"):
        TableSampler(torch.tensor([5, 5, 0, 0]))
