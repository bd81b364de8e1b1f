import pytest
import torch

from recsys.nn.rotary import rotary_turns, rotate


def test_scores_depend_only_on_distance() -> None:
    q, k = torch.randn(2, 6, dtype=torch.float64)

    def score(at_q: int, at_k: int) -> torch.Tensor:
        turned = [rotate(x, rotary_turns(torch.tensor(at), 6)) for x, at in ((q, at_q), (k, at_k))]
        return turned[0] @ turned[1]

    torch.testing.assert_close(score(7, 3), score(104, 100), atol=1e-12, rtol=0)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-3)


def test_a_quarter_turn_takes_the_real_part_to_the_imaginary() -> None:
    quarter = torch.polar(torch.ones(1, dtype=torch.float64), torch.tensor([torch.pi / 2]).double())
    turned = rotate(torch.tensor([3.0, 4.0]), quarter)
    torch.testing.assert_close(turned, torch.tensor([-4.0, 3.0]))


def test_pairs_turn_at_their_own_speeds_and_keep_the_norm() -> None:
    x, at = torch.randn(5, 4), torch.arange(5)
    turned = rotate(x, rotary_turns(at, 4, base=100.0))
    for pair, speed in ((0, 1.0), (1, 0.1)):  # 100 ** -(0/4), 100 ** -(2/4)
        cosine, sine = (at * speed).cos(), (at * speed).sin()
        a, b = x[:, 2 * pair], x[:, 2 * pair + 1]
        torch.testing.assert_close(turned[:, 2 * pair], a * cosine - b * sine)
        torch.testing.assert_close(turned[:, 2 * pair + 1], a * sine + b * cosine)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_half_precision_keeps_its_type() -> None:
    x = torch.randn(3, 8).bfloat16()
    assert rotate(x, rotary_turns(torch.arange(3), 8)).dtype == torch.bfloat16


def test_position_zero_turns_nothing() -> None:
    x = torch.randn(3, 8)
    assert torch.equal(rotate(x, rotary_turns(torch.zeros(3).long(), 8)), x)


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head_width \(5\) must be even"):
        rotary_turns(torch.arange(2), 5)
