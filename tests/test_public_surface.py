"""What users may build on: few names, sorted, documented, and free to import."""

import ast
import importlib
import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import recsys

SOURCE = Path(recsys.__file__).read_text(encoding="utf-8")
EXPECTED = [
    "BruteForceIndex", "ColumnSpec", "ContextConfig", "EncoderConfig", "EvaluationConfig",
    "FaissIndex", "ObjectiveConfig", "OnePiece", "OptimizerConfig", "PrepareConfig",
    "PreparedDataset", "ReasonerConfig", "Recommender", "RecommenderConfig", "ScoreConfig",
    "SplitSpec", "SyntheticConfig", "TrainConfig", "TrainingBatches", "build_objective",
    "evaluate_models", "prepare", "score", "synthetic_world", "train",
]  # fmt: skip


def test_the_surface_is_what_it_was() -> None:
    """Removing or renaming one of these breaks users: note it as [Breaking]."""
    assert recsys.__all__ == EXPECTED
    assert recsys.__all__ == sorted(recsys.__all__)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_public_name_is_importable_and_documented(name: str) -> None:
    value = getattr(recsys, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert name in dir(recsys)


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    typed = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recsys.")
        for alias in node.names
    }
    assert sorted(typed) == recsys.__all__
    for name, module in typed.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(recsys, name)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recomender'; it has .*'Recommender'"):
        recsys.Recomender  # noqa: B018


def test_importing_the_library_imports_no_heavy_package() -> None:
    code = (
        "import sys, recsys, pipelines.__main__; "
        "print([m for m in ('torch', 'torchrec', 'polars', 'pandas', 'faiss', 'sklearn', "
        "'transformers', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n in EXPECTED if n.endswith(("Config", "Spec"))])
def test_public_configs_are_frozen_keyword_only_and_say_what_they_are(name: str) -> None:
    config = getattr(recsys, name)
    assert is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(config))


def test_the_top_level_folders_are_fixed() -> None:
    root = Path(recsys.__file__).parents[1]
    code = {p.parent.name for p in root.glob("*/__init__.py")}
    assert code == {"recsys", "pipelines"}


@pytest.mark.parametrize("part", ["recsys", "pipelines"])
def test_no_file_swallowed_everything(part: str) -> None:
    root = Path(recsys.__file__).parents[1]
    long = {
        str(path.relative_to(root)): lines
        for path in (root / part).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long


@pytest.mark.parametrize("part", ["nn", "losses", "model", "context", "training"])
def test_public_functions_and_classes_are_documented(part: str) -> None:
    root = Path(recsys.__file__).parent
    for path in (root / part).glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
