import torch
import torch.nn.functional as F

from recsys.nn.feed_forward import GatedFeedForward


def test_the_gate_multiplies_the_value() -> None:
    layer = GatedFeedForward(3, 5)
    gate, value = layer.gate_and_value.weight.split(5)
    x = torch.randn(2, 4, 3)
    expected = (F.silu(x @ gate.T) * (x @ value.T)) @ layer.out.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_dropout_acts_in_training_alone() -> None:
    layer, x = GatedFeedForward(3, 64, dropout=0.5), torch.randn(2, 3)
    assert not torch.equal(layer.train()(x), layer.eval()(x))
    assert torch.equal(layer(x), layer(x))
