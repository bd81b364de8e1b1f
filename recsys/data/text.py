"""Frozen text vectors: TF-IDF and a truncated SVD, or a sentence encoder on demand.

The default needs no download and no GPU. Anything that maps texts to rows of equal width can take
its place: see ``TextEncoder``.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

MAX_TERMS = 50_000
"""Terms kept, the most frequent first: bounds the memory of a large catalogue."""


class TextEncoder(Protocol):
    """Anything that turns texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector a text, ``(n, width)`` float32; zeros for an empty text."""
        ...


def encode_texts(
    texts: Sequence[str], *, model: str | None = None, width: int = 64, seed: int = 0
) -> NDArray[np.float32]:
    """Turn texts into unit vectors by a pretrained encoder or, without one, by ``text_vectors``.

    Args:
        texts: Any number of texts; an empty one becomes zeros.
        model: Local folder or hub name of a ``transformers`` encoder, which has its own width.
        width: Length of a vector without a model.
        seed: As for ``text_vectors``.

    Returns:
        ``(n, width)`` float32.
    """
    if model is not None:
        return TransformerTextEncoder(model)(texts)
    return text_vectors(texts, width=width, seed=seed)


def text_vectors(texts: Sequence[str], *, width: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Turn texts into unit vectors whose dot products say how alike the texts are.

    Words are letters and digits of any script, two or more in a row, lower-cased.

    Args:
        texts: One text an item; an empty one is fine.
        width: Length of a vector, above 0.
        seed: Of the randomised SVD; the same seed and texts give the same vectors.

    Returns:
        ``(n, width)`` float32, rows of length 1. A text without words is a row of zeros; with
        fewer words than ``width`` in all texts together the last columns are zeros.

    Raises:
        ValueError: If ``width`` is not above 0.

    Example:
        >>> a, b, c = text_vectors(["red shoes", "red shoes", "garden hose"], width=4)
        >>> print(f"{a @ b:.2f} {abs(a @ c):.2f}")
        1.00 0.00
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check_width(width)
    vectorizer = TfidfVectorizer(
        max_features=MAX_TERMS, sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w\w+\b"
    )
    if not any(len(word) > 1 for text in texts for word in vectorizer.build_tokenizer()(text)):
        return np.zeros((len(texts), width), np.float32)
    return reduced_rows(vectorizer.fit_transform(texts), width=width, seed=seed)


def reduced_rows(matrix: sp.csr_matrix, *, width: int, seed: int) -> NDArray[np.float32]:
    """Project sparse rows on their main directions and scale them to length 1.

    Args:
        matrix: ``(n, columns)``, any float type.
        width: Length of a result row, above 0.
        seed: Of the randomised SVD.

    Returns:
        ``(n, width)`` float32; empty rows stay zeros, missing columns are zeros.

    Raises:
        ValueError: If ``width`` is not above 0.

    Source:
        Halko et al., "Finding structure with randomness", SIAM Review 2011 (scikit-learn's
        ``TruncatedSVD``).
    """
    from sklearn.decomposition import TruncatedSVD

    _check_width(width)
    found = np.zeros((matrix.shape[0], width), np.float32)
    rank = min(width, *matrix.shape)
    if matrix.nnz == 0 or rank == 0:
        return found
    found[:, :rank] = TruncatedSVD(rank, random_state=seed).fit_transform(matrix)
    found[np.diff(matrix.indptr) == 0] = 0
    return unit_rows(found)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1.

    Args:
        vectors: ``(n, width)`` float32.

    Returns:
        A new array; rows shorter than 1e-6 become zeros, since their direction is rounding.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), 0)
    return found.astype(np.float32)


class TransformerTextEncoder:
    """Mean of the last hidden state of a ``transformers`` encoder, padding left out.

    Only safetensors weights are read and no code of the model's repository is run.

    Args:
        name_or_path: Name on the Hugging Face hub, or a local folder.
        batch_size: Texts of one forward pass.
        max_tokens: Longer texts are cut.
        device: Where the model runs.

    Raises:
        ValueError: If ``batch_size`` or ``max_tokens`` is not above 0, or the model cannot be
            loaded.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        batch_size: int = 32,
        max_tokens: int = 128,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be above 0.")
        safe: dict[str, Any] = {"trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, **safe)
            model: Any = AutoModel.from_pretrained(name_or_path, use_safetensors=True, **safe)
        except OSError as error:
            raise ValueError(
                f"name_or_path ({name_or_path!r}) must be a folder or a hub model with a tokenizer "
                f"and safetensors weights: {str(error).splitlines()[0]} Without a network, leave "
                "the text encoder out: the default needs no download."
            ) from None
        self._model = model.to(device).eval()
        self._batch_size, self._max_tokens, self._device = batch_size, max_tokens, device

    @property
    def width(self) -> int:
        """Length of a vector: the model's hidden size."""
        return int(self._model.config.hidden_size)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts, the long ones together so that little is padded.

        Args:
            texts: Any number of texts.

        Returns:
            ``(n, width)`` float32 unit vectors, in the order of ``texts``; zeros for empty texts.
        """
        import torch

        found = np.zeros((len(texts), self.width), np.float32)
        order = sorted(
            (i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i])
        )
        with torch.no_grad():
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                tokens = self._tokenizer(
                    [texts[i] for i in rows],
                    padding=True,
                    truncation=True,
                    max_length=self._max_tokens,
                    return_tensors="pt",
                ).to(self._device)
                hidden = self._model(**tokens).last_hidden_state.float()  # (batch, tokens, width)
                real = tokens["attention_mask"][..., None].float()
                mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1)
                found[rows] = mean.cpu().numpy()
        return unit_rows(found)


def _check_width(width: int) -> None:
    if width < 1:
        raise ValueError(f"width ({width}) must be above 0.")
