import pytest
import torch

from recsys.nn.dropout import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_stated_share_is_dropped_and_the_mean_is_kept(probability: float) -> None:
    out = Dropout(probability).train()(torch.ones(400, 251))
    share = (out == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=0.005)  # rounded to 1/256, plus five sigmas
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert len(out.unique()) == 2


def test_neighbours_are_dropped_independently() -> None:
    kept = (Dropout(0.5).train()(torch.ones(200_000)) != 0).float() - 0.5
    for lag in (1, 2, 7, 8):
        assert (kept[lag:] * kept[:-lag]).mean().item() == pytest.approx(0, abs=0.01)


def test_a_restored_generator_state_drops_the_same_elements() -> None:
    layer, x = Dropout(0.3).train(), torch.ones(3, 17)
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_evaluation_and_probability_zero_return_the_input_and_draw_nothing() -> None:
    x = torch.randn(4)
    state = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_flow_through_what_is_kept_alone() -> None:
    x = torch.ones(64, requires_grad=True)
    out = Dropout(0.5).train()(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_a_probability_just_below_one_still_scales_by_a_finite_number() -> None:
    out = Dropout(0.999).train()(torch.ones(10_000))
    assert out.isfinite().all()
    assert (out == 0).float().mean() > 0.98


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_a_probability_outside_its_range_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"probability \({probability}\) must be at least 0"):
        Dropout(probability)
