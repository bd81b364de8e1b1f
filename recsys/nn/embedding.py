"""Feature tables over TorchRec: one lookup a step, on the step's unique ids.

```
ids (U,)  ──►  id table ───────────────► (U, D)
          ──►  categorical tables ─ concat ─► linear ─► + (U, D)
          ──►  multi-hot bags ─────┘
          ──►  numeric, text ──────┘
```
The concatenation of every feature followed by one linear map equals the sum of one linear map a
feature; the id's own map is the identity, so that a catalogue without features is a plain table.
"""

import logging

import torch
import torchrec
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType

from recsys.schema import Feature

# TorchRec asks torch whether it is being traced, and torch answers with a warning a process.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def table_name(feature: str) -> str:
    """Name of a feature's table, and of its parameters: any column may be a feature.

    Modules refuse names with a full stop or of their own attributes (``type``, ``values``).

    Example:
        >>> table_name("type"), table_name("shop.category")
        ('of_type', 'of_shop%2Ecategory')
    """
    return "of_" + feature.replace("%", "%25").replace(".", "%2E")


class FeatureEncoder(nn.Module):
    """Embeds rows described by declared features: items, users or moments.

    Args:
        width: D.
        features: The declared features, values of which are passed to ``forward``.
        num_ids: Rows of the id table; 0 for none.
        feature_width: Width of a categorical or multi-hot feature's embedding.
        std: Standard deviation of the initial embeddings.
    """

    def __init__(
        self,
        width: int,
        features: tuple[Feature, ...],
        *,
        num_ids: int = 0,
        feature_width: int = 16,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.width, self.features, self.num_ids = width, features, num_ids
        # TorchRec allows one width a collection when sequences are asked for, hence two of them.
        self.id_table: torchrec.EmbeddingCollection | None = None
        if num_ids:
            of_ids = EmbeddingConfig(
                name="id", embedding_dim=width, num_embeddings=num_ids, feature_names=["id"]
            )
            self.id_table = torchrec.EmbeddingCollection(tables=[of_ids])
        of_features = [
            EmbeddingConfig(
                name=table_name(f.name),
                embedding_dim=feature_width,
                num_embeddings=f.rows,
                feature_names=[f.name],
            )
            for f in features
            if f.kind == "categorical"
        ]
        bags = [
            EmbeddingBagConfig(
                name=table_name(f.name),
                embedding_dim=feature_width,
                num_embeddings=f.rows,
                feature_names=[f.name],
                pooling=PoolingType.MEAN,
            )
            for f in features
            if f.kind == "multi_hot"
        ]
        self.tables = torchrec.EmbeddingCollection(tables=of_features) if of_features else None
        self.bags = torchrec.EmbeddingBagCollection(tables=bags) if bags else None
        self.sizes = {
            f.name: feature_width if f.kind in ("categorical", "multi_hot") else f.width
            for f in features
        }
        total = sum(self.sizes.values())
        self.projection = nn.Linear(total, width, bias=False) if total else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def forward(
        self,
        ids: Tensor | None,
        values: dict[str, Tensor],
        lists: dict[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Embed U rows.

        Args:
            ids: Rows of the id table, (U,) int64; None where there is no id table.
            values: Of every categorical (U,) int64, numeric (U,) and text (U, width) feature.
            lists: Of every multi-hot feature its codes end to end and the lengths, (U,) int64.

        Returns:
            (U, D) float32.
        """
        parts: list[Tensor] = []
        coded = [f.name for f in self.features if f.kind == "categorical"]
        if self.tables is not None:
            found = self.tables(_jagged({name: _singles(values[name]) for name in coded}))
            parts += [found[name].values() for name in coded]
        if self.bags is not None and lists is not None:
            names = [f.name for f in self.features if f.kind == "multi_hot"]
            parts.append(self.bags(_jagged({name: lists[name] for name in names})).values())
        for feature in self.features:
            if feature.kind in ("numeric", "text"):
                value = values[feature.name].float()
                parts.append(value[:, None] if value.dim() == 1 else value)
        embedded: Tensor | None = None
        if self.projection is not None:
            embedded = self.projection(torch.cat(parts, dim=-1))
        if self.id_table is not None and ids is not None:
            of_id = self.id_table(_jagged({"id": _singles(ids)}))["id"].values()
            embedded = of_id if embedded is None else embedded + of_id
        if embedded is None:
            raise ValueError("FeatureEncoder has neither an id table nor features to embed.")
        return embedded


def _singles(values: Tensor) -> tuple[Tensor, Tensor]:
    return values, torch.ones_like(values)


def _jagged(features: dict[str, tuple[Tensor, Tensor]]) -> "torchrec.KeyedJaggedTensor":
    return torchrec.KeyedJaggedTensor(
        keys=list(features),
        values=torch.cat([value for value, _ in features.values()]),
        lengths=torch.cat([length for _, length in features.values()]),
    )


def take_lists(codes: Tensor, offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gather rows of a jagged column.

    Args:
        codes: All rows end to end, int64 or int32.
        offsets: Where each row starts, (N + 1,) int64.
        rows: Rows to take, (U,) int64.

    Returns:
        Their codes end to end (int64) and their lengths, (U,) int64.

    Example:
        >>> codes, offsets = torch.tensor([7, 8, 9]), torch.tensor([0, 2, 2, 3])
        >>> take_lists(codes, offsets, torch.tensor([2, 0]))
        (tensor([9, 7, 8]), tensor([1, 2]))
    """
    start, length = offsets[rows], offsets[rows + 1] - offsets[rows]
    shift = start - torch.cumsum(length, 0) + length
    index = torch.arange(int(length.sum()), device=codes.device) + shift.repeat_interleave(length)
    return codes[index].long(), length
