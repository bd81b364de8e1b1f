"""Text vectors: the default and the transformer encoder."""

import os

import numpy as np
import pytest

from recsys.data.text import TransformerTextEncoder, text_vectors, unit_rows


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
