"""Imports in ``recsys`` point down the layers, so no cycle can form."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lowest first. Names on one line never import each other.
LAYERS = (
    {"types"},
    {"config", "schema", "batch"},
    {"data", "privacy", "nn", "losses", "metrics"},
    {"profile", "semantic_ids"},
    {"context", "model"},
    {"retrieval", "ranking"},
    {"cascade"},
    {"training", "evaluation", "scoring", "explain"},
    {"dialogue"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "recsys").rglob("*.py"))


def imported_parts(source: str, where: str) -> Iterator[str]:
    """Yield the ``recsys`` parts that one file imports, function-local imports included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}:{node.lineno} uses a relative import."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            assert top != "pipelines", f"{where}:{node.lineno} imports a job."
            if top == "recsys" and rest:
                yield rest.split(".")[0]


def check(source: str, own: str, where: str = "file") -> None:
    for part in imported_parts(source, where):
        assert part == own or LEVEL[part] < LEVEL[own], f"{where}: {own} may not import {part}."


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "recsys").parts[0].removesuffix(".py")
    if own == "__init__":
        return  # the public surface may import every layer
    check(path.read_text(encoding="utf-8"), own, str(path.relative_to(ROOT)))


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("import recsys.training.loop", "model"),
        ("from recsys.context.loader import x", "model"),
        ("from recsys import training", "nn"),
        ("def f():\n    from recsys.model import x", "data"),
        ("from recsys.nn.mask import x", "losses"),
        ("from ..types import x", "nn"),
        ("from pipelines.train import main", "training"),
    ],
)
def test_the_layer_test_notices_each_kind_of_violation(source: str, own: str) -> None:
    with pytest.raises(AssertionError):
        check(source, own)


def test_every_part_of_the_library_has_a_layer() -> None:
    parts = {path.relative_to(ROOT / "recsys").parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} <= set(LEVEL)


def test_jobs_never_import_each_other() -> None:
    """Helpers of jobs (console, configs, provenance, …) are no jobs."""
    from pipelines.__main__ import JOBS

    for path in (ROOT / "pipelines").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.stem in JOBS and isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.removeprefix("pipelines.") not in JOBS, path
