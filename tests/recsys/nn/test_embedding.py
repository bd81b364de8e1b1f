"""The TorchRec lookup against a dense twin of plain tables and matrix products."""

import pytest
import torch
from torch import Tensor

from recsys.nn.embedding import FeatureEncoder, table_name, take_lists
from recsys.schema import Feature

FEATURES = (
    Feature(name="price", kind="numeric"),
    Feature(name="tags", kind="multi_hot", rows=6),
    Feature(name="color", kind="categorical", rows=5),
    Feature(name="title", kind="text", width=3),
    Feature(name="brand", kind="categorical", rows=4),
    Feature(name="moods", kind="multi_hot", rows=3),
)
U = 4
TAGS = [[2, 3], [], [5], [5, 5, 2]]
MOODS = [[2], [2], [], [1]]


def inputs() -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    values = {
        "price": torch.randn(U),
        "color": torch.tensor([4, 0, 2, 2]),
        "brand": torch.tensor([3, 3, 1, 0]),
        "title": torch.randn(U, 3),
    }
    lists = {
        name: (torch.tensor(sum(rows, [])), torch.tensor([len(row) for row in rows]))
        for name, rows in (("tags", TAGS), ("moods", MOODS))
    }
    return values, lists


def tables_of(encoder: FeatureEncoder) -> dict[str, Tensor]:
    """Every table, by feature."""
    found = {}
    for name, parameter in encoder.named_parameters():
        for feature in ("color", "brand", "tags", "moods"):
            if table_name(feature) in name:
                found[feature] = parameter
        if name.startswith("id_table"):
            found["id"] = parameter
    return found


def twin(encoder: FeatureEncoder, ids: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Lists are averaged one by one; columns are categorical, then multi-hot, then the numbers."""
    tables = tables_of(encoder)

    def mean(table: Tensor, rows: list[list[int]]) -> Tensor:
        width = table.shape[1]
        return torch.stack(
            [table[torch.tensor(r)].mean(0) if r else table.new_zeros(width) for r in rows]
        )

    parts = [tables["color"][values["color"]], tables["brand"][values["brand"]]]
    parts += [mean(tables["tags"], TAGS), mean(tables["moods"], MOODS)]
    parts += [values["price"][:, None], values["title"]]
    return tables["id"][ids] + torch.cat(parts, dim=1) @ encoder.projection.weight.T


def test_every_kind_of_feature_equals_its_plain_twin_gradients_included() -> None:
    encoder = FeatureEncoder(5, FEATURES, num_ids=7, feature_width=2, std=1.0)
    values, lists = inputs()
    ids = torch.tensor([6, 2, 2, 0])
    weight = torch.randn(U, 5)
    parameters = list(encoder.parameters())
    found, expected = encoder(ids, values, lists), twin(encoder, ids, values)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(mine, other)


def test_a_catalogue_without_features_is_a_plain_table() -> None:
    encoder = FeatureEncoder(3, (), num_ids=4)
    assert len(list(encoder.parameters())) == 1
    table = next(encoder.parameters())
    assert torch.equal(encoder(torch.tensor([3, 0, 3]), {}), table[[3, 0, 3]])


def test_features_alone_need_no_ids() -> None:
    encoder = FeatureEncoder(3, (Feature(name="age", kind="numeric"),))
    found = encoder(None, {"age": torch.tensor([1.0, -2.0])})
    torch.testing.assert_close(found, torch.tensor([[1.0], [-2.0]]) @ encoder.projection.weight.T)


@pytest.mark.parametrize(
    "name", ["type", "id", "shop.category", "values", "keys", "a%2Eb", "weight"]
)
@pytest.mark.parametrize("kind", ["categorical", "multi_hot"])
def test_a_feature_may_have_any_column_name(name: str, kind: str) -> None:
    encoder = FeatureEncoder(3, (Feature(name=name, kind=kind, rows=4),), num_ids=5)
    codes = torch.tensor([1, 3])
    found = encoder(torch.tensor([2, 2]), {name: codes}, {name: (codes, torch.tensor([1, 1]))})
    assert found.shape == (2, 3)
    assert not torch.equal(found[0], found[1])


def test_names_that_differ_in_one_sign_have_tables_of_their_own() -> None:
    features = tuple(Feature(name=n, kind="categorical", rows=4) for n in ("a.b", "a%2Eb", "a_b"))
    encoder = FeatureEncoder(3, features, feature_width=2)
    assert sum(p.shape == (4, 2) for p in encoder.parameters()) == 3


def test_an_encoder_of_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="neither an id table nor features"):
        FeatureEncoder(3, ())(None, {})


def test_lists_are_taken_in_the_order_asked() -> None:
    codes = torch.tensor([7, 8, 9, 4], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 2, 3, 4])
    taken, length = take_lists(codes, offsets, torch.tensor([3, 1, 0, 0]))
    assert taken.tolist() == [4, 7, 8, 7, 8]
    assert taken.dtype == torch.int64
    assert length.tolist() == [1, 0, 2, 2]
    nothing, no_length = take_lists(codes, offsets, torch.tensor([1, 1]))
    assert nothing.tolist() == []
    assert no_length.tolist() == [0, 0]
