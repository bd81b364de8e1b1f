"""Text vectors: the default and the transformer encoder."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.data.text import TransformerTextEncoder, text_vectors, unit_rows
from recsys.schema import ColumnSpec, SplitSpec


def test_texts_that_share_words_are_alike_and_others_are_not() -> None:
    vectors = text_vectors(["red wool scarf", "red wool hat", "garden hose"], width=8)
    assert vectors.shape == (3, 8)
    assert vectors.dtype == np.float32
    assert vectors[0] @ vectors[1] > 0.3
    assert abs(vectors[0] @ vectors[2]) < 1e-5


def test_rows_have_length_one_and_an_empty_text_is_zeros() -> None:
    vectors = text_vectors(["red scarf", "", "!", "blue hat blue"], width=2)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 0, 1], abs=1e-5)


def test_the_same_texts_give_the_same_bytes() -> None:
    texts = [f"word{i % 7} word{i % 5} word{i % 3}" for i in range(40)]
    assert text_vectors(texts, width=4).tobytes() == text_vectors(texts, width=4).tobytes()


def test_missing_words_leave_zero_columns() -> None:
    assert not text_vectors(["red", "blue", "red"], width=6)[:, 2:].any()


@pytest.mark.parametrize("texts", [[], [""], ["a", "?"]])
def test_texts_without_words_are_zeros(texts: list[str]) -> None:
    assert text_vectors(texts, width=3).tolist() == [[0, 0, 0]] * len(texts)


def test_words_of_other_scripts_count() -> None:
    vectors = text_vectors(["красный шарф", "красный шарф", "синяя шапка"], width=3)
    assert vectors[0] @ vectors[1] == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[2] == pytest.approx(0, abs=1e-5)


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width \(0\)"):
        text_vectors(["red"], width=0)


def test_unit_rows_keeps_zeros() -> None:
    assert unit_rows(np.array([[3, 4], [0, 0]], np.float32)).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0, 0],
    ]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "hat", "scarf"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_the_transformer_encoder_gives_unit_rows_in_the_order_of_the_texts(tiny_bert: str) -> None:
    encoder = TransformerTextEncoder(tiny_bert, batch_size=2, max_tokens=8)
    texts = ["red hat blue scarf", "", "red", "blue scarf"]
    vectors = encoder(texts)
    assert vectors.shape == (4, encoder.width) == (4, 8)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 1, 1], abs=1e-5)
    one_by_one = np.concatenate([encoder([text]) for text in texts])
    assert vectors == pytest.approx(one_by_one, abs=1e-5)


def test_the_transformer_encoder_averages_real_tokens_only(tiny_bert: str) -> None:
    import torch
    from transformers import BertModel

    encoder = TransformerTextEncoder(tiny_bert)
    model = BertModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([[2, 5, 3]])).last_hidden_state[0].mean(0).numpy()
    beside_a_longer_text = encoder(["red", "red hat blue scarf"])[0]
    assert beside_a_longer_text == pytest.approx(hidden / np.linalg.norm(hidden), abs=1e-5)


def test_pickled_weights_are_refused(tiny_bert: str, tmp_path) -> None:
    import shutil

    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    os.remove(folder / "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        TransformerTextEncoder(str(folder))


@pytest.mark.parametrize("name", ["batch_size", "max_tokens"])
def test_sizes_of_the_transformer_encoder_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} \(0\)"):
        TransformerTextEncoder("anything", **{name: 0})


def test_prepare_takes_a_transformers_encoder_for_declared_texts(
    tiny_bert: str, tmp_path: Path
) -> None:
    words = pa.table({"item_id": ["i0", "i1", "i2"], "text": ["red hat", "blue scarf", None]})
    pq.write_table(words, tmp_path / "items.parquet")
    pq.write_table(
        pa.table(
            {"user_id": ["u"] * 4, "item_id": ["i0", "i1", "i2", "i0"], "timestamp": [*range(1, 5)]}
        ),
        tmp_path / "events.parquet",
    )
    manifest = prepare(
        PrepareConfig(
            events=(str(tmp_path / "events.parquet"),),
            items=(str(tmp_path / "items.parquet"),),
            out=tmp_path / "out",
            columns=ColumnSpec(item_features=("text",), behavior=None),
            split=SplitSpec(kind="leave_one_out"),
            text_features=("text",),
            text_model=tiny_bert,
            coarse="none",
        )
    )
    (feature,) = manifest.item_features
    assert (feature.kind, feature.width) == ("text", 8)
    catalogue = PreparedDataset(tmp_path / "out").catalogue
    expected = TransformerTextEncoder(tiny_bert)(["red hat", "blue scarf"])
    for name, vector in zip(("i0", "i1"), expected, strict=True):
        found = catalogue.values["text"][catalogue.index[name]].numpy()
        np.testing.assert_allclose(found, vector, atol=1e-6)
    assert not catalogue.values["text"][catalogue.index["i2"]].any()
