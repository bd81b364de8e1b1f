import math

import pytest
import torch
from tiny_world import tiny_model
from torch import nn

from recsys.data.dataset import PreparedDataset
from recsys.training.optim import OptimizerConfig, build_optimizer, lr_factor


def test_only_matrices_of_linear_maps_decay(rich: PreparedDataset) -> None:
    model = tiny_model(
        rich,
        encoder={"relative_bias": True, "max_blocks": 2},
        reasoner={"gated": True, "norm_rescale": True, "step_rank": 2},
    )
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]
    }
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    assert decayed == linear
    held = {names[id(p)] for g in optimizer.param_groups for p in g["params"]}
    assert held == set(names.values())


def test_frozen_and_empty_parameters_are_left_out(toy: PreparedDataset) -> None:
    model = tiny_model(toy, reasoner={"num_steps": 2, "step_embedding": False, "step_rank": 0})
    optimizer = build_optimizer(model, OptimizerConfig())
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    for name in ("reasoner.step", "reasoner.down", "reasoner.up"):
        assert id(model.get_parameter(name)) not in held


def test_the_rate_warms_up_then_falls_along_a_cosine_to_its_floor() -> None:
    config = OptimizerConfig(warmup_steps=4, final_lr_fraction=0.2)
    assert [lr_factor(s, 104, config) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 104, config) == 1.0
    assert lr_factor(54, 104, config) == pytest.approx(0.6)
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_factor(29, 104, config) == pytest.approx(quarter)
    assert lr_factor(104, 104, config) == pytest.approx(0.2)
    assert lr_factor(10**6, 104, config) == pytest.approx(0.2)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    config = OptimizerConfig(warmup_steps=2, schedule="constant")
    assert [lr_factor(s, 10, config) for s in (0, 1, 2, 9, 99)] == [0.5, 1, 1, 1, 1]
    assert lr_factor(0, 10, OptimizerConfig(warmup_steps=0, schedule="constant")) == 1.0


def test_a_run_shorter_than_its_warm_up_never_divides_by_zero() -> None:
    config = OptimizerConfig(warmup_steps=100)
    assert [lr_factor(s, 3, config) for s in range(3)] == [0.01, 0.02, 0.03]
    assert lr_factor(100, 100, config) == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, r"lr \(0\.0\) must be above 0"),
        ({"weight_decay": -1.0}, r"weight_decay \(-1\.0\)"),
        ({"warmup_steps": -1}, r"warmup_steps \(-1\)"),
        ({"clip_norm": -1.0}, r"clip_norm \(-1\.0\) at least 0"),
        ({"beta2": 1.0}, r"beta2 \(1\.0\)"),
        ({"final_lr_fraction": 1.5}, r"final_lr_fraction \(1\.5\)"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)  # type: ignore[arg-type]


def test_the_second_moment_and_the_rate_are_those_of_the_config(toy: PreparedDataset) -> None:
    optimizer = build_optimizer(tiny_model(toy), OptimizerConfig(lr=0.5, beta2=0.7))
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.7)
        assert group["lr"] == 0.5
    assert isinstance(optimizer, torch.optim.AdamW)
