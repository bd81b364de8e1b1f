import math
from pathlib import Path

import pytest
import torch
from tiny_world import User, write_dataset

from recsys.data.dataset import Catalogue
from recsys.ranking.formula import FinalScore
from recsys.schema import Feature

TASKS = ("click", "order")
P = torch.tensor([[0.5, 0.25], [0.04, 0.01]], dtype=torch.float64)
RETRIEVAL = torch.tensor([3.0, -2.0])
ITEMS = torch.tensor([2, 3])


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Items 2 and 3 cost 12 and 6; what is stored is (price - 10) / 4."""
    dataset = write_dataset(
        tmp_path,
        [User(item=[2, 3], train_end=2)],
        num_trained=2,
        item_features=(
            Feature(name="price", kind="numeric", mean=10.0, scale=4.0),
            Feature(name="type", kind="categorical", rows=3),
        ),
        item_values={"price": [0.0, 0.0, 0.5, -1.0], "type": [0, 1, 2, 2]},
    )
    return dataset.catalogue


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("click", [0.5, 0.04]),
        ("order", [0.25, 0.01]),
        ("p_click", [0.5, 0.04]),
        ("price", [12.0, 6.0]),
        ("p_click**0.5 * p_order * price", [math.sqrt(0.5) * 3, 0.2 * 0.06]),
        ("retrieval_score - -2", [5.0, 0.0]),
        ("1 + 2 * 3 ** 2", [19.0, 19.0]),
        ("(price - 6) / max(p_click, 1)", [6.0, 0.0]),
        ("log(exp(min(price, 9))) + sqrt(4)", [11.0, 8.0]),
    ],
)
def test_formulas_are_worked_by_hand(
    catalogue: Catalogue, formula: str, expected: list[float]
) -> None:
    found = FinalScore(formula, TASKS, catalogue)(P, RETRIEVAL, ITEMS)
    assert found.tolist() == pytest.approx(expected)
    assert found.dtype == torch.float64


def test_any_shape_of_candidates_is_scored(catalogue: Catalogue) -> None:
    score = FinalScore("p_order * price", TASKS, catalogue)
    found = score(P.view(1, 2, 1, 2), RETRIEVAL.view(1, 2, 1), ITEMS.view(1, 2, 1))
    assert found.flatten().tolist() == pytest.approx([3.0, 0.06])
    assert found.shape == (1, 2, 1)


def test_a_bare_task_is_told_from_a_formula(catalogue: Catalogue) -> None:
    assert FinalScore("order", TASKS, catalogue).task == 1
    assert FinalScore("p_order", TASKS, catalogue).task is None
    assert FinalScore("p_order + price", TASKS, catalogue).columns == {"p_order", "price"}


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("cart", r"names the columns \['cart'\]; there are \['p_click', 'p_order', 'retr"),
        ("p_cart + type", r"\['p_cart', 'type'\]; .*'price'\], and the tasks \['click', 'order'\]"),
        ("p_click +", "cannot be read"),
        ("", "cannot be read"),
        ("p_click > 0", r"not 'p_click > 0'"),
        ("open('x')", r"not \"open\('x'\)\""),
        ("price.real", r"not 'price.real'"),
        ("log(price, 2)", r"not 'log\(price, 2\)'"),
        ("log(x=price)", r"not 'log\(x=price\)'"),
        ("(lambda: 1)()", "not"),
        ("'a' * 3", "not \"'a'\""),
        ("[1][0]", "not"),
        ("True", "not 'True'"),
        ("1j", "not '1j'"),
        ("9" * 400, "not '999"),
        ("log", r"names the columns \['log'\]"),
    ],
)
def test_what_is_no_formula_is_refused_by_name(
    catalogue: Catalogue, formula: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        FinalScore(formula, TASKS, catalogue)


def test_a_score_that_is_not_finite_is_refused_with_its_number(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"'log\(price - 6\)' is not finite for 1 of 2 candidates"):
        FinalScore("log(price - 6)", TASKS, catalogue)(P, RETRIEVAL, ITEMS)
