"""The final score of a candidate: a task's probability, or any declared formula over columns.

    click                                      the calibrated probability of the task
    p_click**0.5 * p_order * price             what a shown item is expected to bring
    0.8 * p_click + 0.2 * log(1 + price)

A formula is arithmetic over columns: numbers, names, ``+ - * / **``, parentheses and the functions
``log exp sqrt min max``. It is read by Python's own parser and worked out here, node by node;
nothing is executed, and every candidate's score depends on its own columns alone.
"""

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from recsys.data.dataset import Catalogue

Columns = dict[str, Tensor]

_OPERATORS: Final[dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Final[dict[str, tuple[int, Callable[..., Tensor]]]] = {
    "log": (1, torch.log),
    "exp": (1, torch.exp),
    "sqrt": (1, torch.sqrt),
    "min": (2, torch.minimum),
    "max": (2, torch.maximum),
}
"""Name → how many arguments, and the function."""


class FinalScore:
    """Scores candidates by a formula.

    Args:
        formula: A task's name, or a formula over ``p_<task>``, ``retrieval_score`` and the numeric
            item columns in the units of the logs.
        tasks: Names of the tasks, weakest first.
        catalogue: The items, for their numeric columns.

    Raises:
        ValueError: If the formula is no arithmetic, or names columns that there are not.
    """

    def __init__(self, formula: str, tasks: Sequence[str], catalogue: Catalogue) -> None:
        self.formula = formula
        self.task = tasks.index(formula) if formula in tasks else None
        """The task whose probability is the score; None for a formula."""
        self._probability = {f"p_{name}": s for s, name in enumerate(tasks)}
        self._items = {
            f.name: catalogue.values[f.name].double() * f.scale + f.mean
            for f in catalogue.features
            if f.kind == "numeric" and f.width == 1
        }
        self._tree = _parse(formula if self.task is None else f"p_{formula}")
        self.columns = {node.id for node in _names(self._tree)}
        """Columns the formula reads."""
        known = [*self._probability, "retrieval_score", *self._items]
        unknown = sorted(self.columns - set(known))
        if unknown:
            raise ValueError(
                f"The final score {formula!r} names the columns {unknown}; there are {known}, and "
                f"the tasks {list(tasks)} by their bare names."
            )

    def __call__(self, probabilities: Tensor, retrieval_score: Tensor, items: Tensor) -> Tensor:
        """Score candidates.

        Args:
            probabilities: Calibrated, (..., S).
            retrieval_score: (...).
            items: Internal ids, (...) int64; columns of padding are those of row 0.

        Returns:
            (...) float64.

        Raises:
            ValueError: If a score is not finite.
        """
        columns: Columns = {}
        for name in self.columns:
            if name in self._probability:
                columns[name] = probabilities[..., self._probability[name]].double()
            elif name == "retrieval_score":
                columns[name] = retrieval_score.double()
            else:
                columns[name] = self._items[name].to(items.device)[items]
        score = _value(self._tree, columns, items.device).expand(items.shape)
        wrong = int((~torch.isfinite(score)).sum())
        if wrong:
            raise ValueError(
                f"The final score {self.formula!r} is not finite for {wrong:,} of "
                f"{score.numel():,} candidates: see to its logs, roots and quotients, such as "
                "log(1 + price) where a price can be 0."
            )
        return score


def _parse(formula: str) -> ast.expr:
    """Read a formula and refuse whatever is no arithmetic."""
    try:
        tree = ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"The final score {formula!r} cannot be read: {error}.") from None
    for node in _descendants(tree):
        if not _is_arithmetic(node):
            raise ValueError(
                f"The final score {formula!r} may hold numbers, columns, + - * / **, parentheses "
                f"and {', '.join(_FUNCTIONS)}, not {ast.unparse(node)!r}."
            )
    return tree


def _descendants(tree: ast.expr) -> list[ast.expr]:
    """The expression and its parts, without the names of called functions."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [n for n in ast.walk(tree) if isinstance(n, ast.expr) and id(n) not in called]


def _names(tree: ast.expr) -> list[ast.Name]:
    return [node for node in _descendants(tree) if isinstance(node, ast.Name)]


def _is_arithmetic(node: ast.expr) -> bool:
    match node:
        case ast.Name():
            return True
        case ast.Constant(value):
            return isinstance(value, float) or (type(value) is int and value < 2**63)
        case ast.UnaryOp(op=ast.USub()):
            return True
        case ast.BinOp(op=op):
            return type(op) in _OPERATORS
        case ast.Call(func=ast.Name(name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return len(arguments) == _FUNCTIONS[name][0]
        case _:
            return False


def _value(node: ast.expr, columns: Columns, device: torch.device) -> Tensor:
    match node:
        case ast.Name(name):
            return columns[name]
        case ast.Constant(value):
            return torch.tensor(float(value), dtype=torch.float64, device=device)  # type: ignore[arg-type]
        case ast.UnaryOp(operand=operand):
            return -_value(operand, columns, device)
        case ast.BinOp(left, op, right):
            sides = (_value(left, columns, device), _value(right, columns, device))
            return _OPERATORS[type(op)](*sides)
        case ast.Call(func=ast.Name(name), args=arguments):
            return _FUNCTIONS[name][1](*(_value(a, columns, device) for a in arguments))
    raise AssertionError(f"{ast.dump(node)} passed the parser")
