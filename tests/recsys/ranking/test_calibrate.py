import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.ranking.calibrate import Calibration, TaskCalibration, task_names
from recsys.schema import Manifest


def test_two_logits_get_the_rates_that_were_seen() -> None:
    """At logit 0 one of four is positive, at logit 2 three of four: log odds -log 3 and log 3."""
    logits = np.repeat([0.0, 2.0], 4)[:, None]
    levels = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    found = Calibration.fit(["click"], logits, levels)
    task = found.tasks["click"]
    assert task.slope == pytest.approx(math.log(3), rel=1e-3)
    assert task.intercept == pytest.approx(-math.log(3), rel=1e-3)
    assert (task.rows, task.positives) == (8, 4)
    p = found.apply(torch.tensor([[0.0], [2.0]]))
    assert p[:, 0].tolist() == pytest.approx([0.25, 0.75], rel=1e-3)
    assert p.dtype == torch.float64


def test_labels_nest_and_each_task_has_its_own_fit() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 2)) * [1, 30]
    p = 1 / (1 + np.exp(-(2 * logits[:, 0] - 1)))
    click = random.random(4000) < p
    order = click & (random.random(4000) < 1 / (1 + np.exp(-logits[:, 1] / 30)))
    found = Calibration.fit(["click", "order"], logits, click.astype(int) + order)
    assert found.tasks["click"].slope == pytest.approx(2, abs=0.2)
    assert found.tasks["click"].intercept == pytest.approx(-1, abs=0.15)
    assert found.tasks["order"].positives == order.sum() < click.sum()


def test_a_scale_or_shift_of_the_logits_changes_no_probability() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(500, 1))
    levels = (random.random(500) < 0.3).astype(int)
    plain = Calibration.fit(["a"], logits, levels).apply(torch.tensor(logits))
    moved = Calibration.fit(["a"], logits * 1e4 + 7e5, levels)
    assert torch.allclose(moved.apply(torch.tensor(logits * 1e4 + 7e5)), plain, atol=1e-6)


def test_what_cannot_be_fitted_keeps_its_logits() -> None:
    logits = np.array([[-1.0, 3.0], [1.0, 3.0]])
    found = Calibration.fit(["apart", "equal"], logits, np.array([0, 2]))
    assert 0 < found.tasks["apart"].slope < 20  # perfectly told apart, and yet finite
    assert found.tasks["equal"] == TaskCalibration()
    nobody = Calibration.fit(["none"], logits[:, :1], np.array([0, 0]))
    assert nobody == Calibration.identity(["none"])
    assert nobody.apply(torch.zeros(3, 1)).flatten().tolist() == [0.5] * 3


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    assert Calibration.read(tmp_path, ["click"]) == Calibration.identity(["click"])
    found = Calibration(tasks={"click": TaskCalibration(slope=2.0, intercept=-1.0, rows=9)})
    found.save(tmp_path)
    assert Calibration.read(tmp_path, ["click"]) == found
    saved = json.loads((tmp_path / "calibration.json").read_text())
    assert saved["tasks"]["click"]["slope"] == 2.0
    with pytest.raises(ValueError, match=r"tasks \['click'\], not 1 and \['order'\]: fit it again"):
        Calibration.read(tmp_path, ["order"])


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(2, 1\) must be \(n, S\) for 2 .*'a', 'b'"):
        Calibration.fit(["a", "b"], np.zeros((2, 1)), np.zeros(2, int))
    with pytest.raises(ValueError, match="logits must be finite"):
        Calibration.fit(["a"], np.array([[math.nan]]), np.zeros(1, int))
    with pytest.raises(ValueError, match=r"logits \(3, 2\) must have 1 columns, .*'a'"):
        Calibration.identity(["a"]).apply(torch.zeros(3, 2))


def test_tasks_are_the_funnel_or_the_one_target() -> None:
    assert task_names(Manifest(funnel=("click", "order"))) == ("click", "order")
    assert task_names(Manifest()) == ("target",)
