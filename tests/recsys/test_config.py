import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from recsys.config import from_dict, read_json, to_dict, write_json
from recsys.model.config import DataSizes, ReasonerConfig, RecommenderConfig
from recsys.schema import Feature, Manifest, SplitSpec
from recsys.training.loop import TrainConfig
from recsys.training.objective import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rate: float = 0.5
    flag: bool = False
    path: Path = Path("a")
    kind: Literal["x", "y"] = "x"
    either: Literal["x"] | Literal["none"] | None = "x"
    maybe: int | None = None
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "b")
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


FULL = Outer(
    name="n", rate=2.0, flag=True, path=Path("b/c"), kind="y", either="none", maybe=3,
    sizes=(1, 2), pair=(5, "z"), inner=Inner(size=7), many=(Inner(), Inner(size=2)),
    counts={"k": 1},
)  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        Outer(name="all defaults"),
        TrainConfig(objective=ObjectiveConfig(prefix_loss="none", step_losses=("bce", "u2i"))),
        RecommenderConfig(
            data=DataSizes(
                num_items=5,
                num_trained_items=3,
                item_features=(Feature(name="type", kind="categorical", rows=3),),
            ),
            reasoner=ReasonerConfig(decoder="shared"),
        ),
        Manifest(split=SplitSpec(kind="leave_one_out"), funnel=("a", "b"), hashes={"f": "0"}),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_written_as_json_and_read_back_is_the_same(config: object, tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", config)
    assert from_dict(type(config), read_json(tmp_path / "c.json")) == config
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_fields_left_out_take_their_defaults() -> None:
    assert from_dict(Outer, {"name": "n"}) == Outer(name="n")


def test_whole_numbers_are_welcome_where_a_float_belongs() -> None:
    found = from_dict(Outer, {"name": "n", "rate": 3})
    assert found.rate == 3.0
    assert isinstance(found.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "n", "nmae": 1}, r"unknown keys \['nmae'\]; Outer knows \['name', 'rate'"),
        ({"name": "n", "inner": {"sise": 1}}, r"here\.inner has unknown keys \['sise'\]"),
        ({"name": "n", "many": [{}, {"x": 1}]}, r"here\.many\[1\] has unknown keys"),
        ({}, r"here does not describe a Outer: .*'name'"),
        ({"name": 3}, r"here\.name \(3\) must be of type str"),
        ({"name": "n", "flag": 1}, r"here\.flag \(1\) must be of type bool"),
        ({"name": "n", "maybe": True}, r"here\.maybe \(True\) must be of type int"),
        ({"name": "n", "rate": "fast"}, r"here\.rate \('fast'\) must be of type float"),
        ({"name": "n", "rate": True}, r"here\.rate \(True\) must be of type float"),
        ({"name": "n", "kind": "z"}, r"here\.kind \('z'\) must be one of \['x', 'y'\]"),
        ({"name": "n", "either": "z"}, r"here\.either \('z'\) must be one of"),
        ({"name": "n", "sizes": 3}, r"here\.sizes must be a list, not 3"),
        ({"name": "n", "sizes": [1, "2"]}, r"here\.sizes\[1\] \('2'\) must be of type int"),
        ({"name": "n", "pair": [1]}, r"here\.pair must have 2 values, not \[1\]"),
        ({"name": "n", "counts": [1]}, r"here\.counts must be an object, not \[1\]"),
        ({"name": "n", "path": 3}, r"here\.path \(3\) must be of type str"),
        ({"name": "n", "inner": 3}, r"here\.inner must be an object with the fields of Inner"),
        ([1], r"here must be an object with the fields of Outer, not \[1\]"),
    ],
)
def test_wrong_values_are_refused_by_name(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Outer, values, where="here")  # type: ignore[arg-type]


def test_checks_of_the_dataclass_itself_are_heard() -> None:
    with pytest.raises(ValueError, match=r"num_negatives \(0\)"):
        from_dict(ObjectiveConfig, {"num_negatives": 0})


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_bytes(b'{"a": ')
    with pytest.raises(ValueError, match=r"bad\.json is not valid JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.json is not valid JSON"):
        read_json(tmp_path / "bytes.json")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one_behind_a_reader(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
