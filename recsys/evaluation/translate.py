"""Yesterday's model on today's data: codes of a data set → codes of an older model, by value.

Internal ids belong to one preparation: today's item 7 may be yesterday's 9. External values are the
same on both days, and what yesterday did not know is ``UNKNOWN`` to its model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.data.dataset import Catalogue, PreparedDataset
from recsys.data.idmap import row_sources
from recsys.schema import Manifest
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, UNKNOWN


def same_codes(
    dataset: PreparedDataset,
    catalogue: Catalogue,
    manifest: Manifest,
    words: dict[str, list[str]],
) -> bool:
    """Whether a data set calls everything that a model reads what the model calls it.

    Args:
        dataset: Today's.
        catalogue: The model's.
        manifest: Of the data the model was trained on.
        words: The model's vocabularies.

    Returns:
        True where nothing needs to be translated.
    """
    today = dataset.manifest
    return (
        words == dataset.vocabularies
        and (manifest.behaviors, manifest.domains) == (today.behaviors, today.domains)
        and manifest.event_features == today.event_features
        and manifest.user_features == today.user_features
        and bool(catalogue.item_ids.equals(dataset.catalogue.item_ids))
    )


@dataclass(frozen=True, slots=True)
class Translation:
    """What a data set calls things → what a model calls them."""

    items: Tensor
    """The model's id of each item of the data set, (N,) int64; ``UNKNOWN`` where it has none."""
    behaviors: Tensor
    """The model's code of each behavior code."""
    codes: dict[str, Tensor]
    """The same of ``event.<feature>``, ``user.<feature>`` and ``event.domain``."""
    numbers: dict[str, tuple[float, float]]
    """Factor and shift of a numeric feature, which each day scales by its own mean and spread."""

    @staticmethod
    def between(
        dataset: PreparedDataset,
        catalogue: Catalogue,
        manifest: Manifest,
        words: dict[str, list[str]],
    ) -> "Translation":
        """Compare a data set with what a model was trained on.

        Args:
            dataset: Today's.
            catalogue: The model's.
            manifest: Of the data the model was trained on.
            words: The model's vocabularies.

        Returns:
            The translation.

        Raises:
            ValueError: If the model knows none of the items, or reads a feature that the data set
                lacks.
        """
        names = (c.item_ids.to_pylist()[FIRST_ID:] for c in (catalogue, dataset.catalogue))
        items = _by_value(*names)
        if not (items >= FIRST_ID).any():
            raise ValueError(
                f"The model knows no item of {dataset.path}: it was trained on other logs."
            )
        today = dataset.manifest
        codes = {"event.domain": _by_value(manifest.domains, today.domains)}
        numbers = {}
        for owner in ("event", "user"):
            had = {f.name: f for f in getattr(manifest, f"{owner}_features")}
            has = {f.name: f for f in getattr(today, f"{owner}_features")}
            missing = [
                name for name, f in had.items() if name not in has or has[name].kind != f.kind
            ]
            if missing:
                raise ValueError(
                    f"The model reads the {owner} features {missing}, which {dataset.path} lacks: "
                    "prepare it with them."
                )
            for name, old in had.items():
                key, new = f"{owner}.{name}", has[name]
                if old.kind == "numeric":
                    factor = new.scale / old.scale
                    numbers[key] = (factor, (new.mean - old.mean) / old.scale)
                else:
                    codes[key] = _by_value(words[key], dataset.vocabularies[key])
        behaviors = _by_value(manifest.behaviors, today.behaviors, FIRST_BEHAVIOR)
        return Translation(items, behaviors, codes, numbers)

    @property
    def is_unknown(self) -> Tensor:
        """Items that the model does not know, (N,) bool."""
        return self.items == UNKNOWN

    def __call__(self, context: ContextBatch) -> ContextBatch:
        """Put a batch into the model's words."""
        history, requests = context.history, context.requests
        anchors = requests.anchor_item
        return replace(
            context,
            history=replace(
                history,
                item=self.items[history.item],
                behavior=self.behaviors[history.behavior],
                features=self._values("event", history.features),
            ),
            requests=replace(
                requests,
                situation=self._values("event", requests.situation),
                anchor_item=None if anchors is None else self.items[anchors],
            ),
            user=self._values("user", context.user),
        )

    def _values(self, owner: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Codes and numbers of features; what the clock tells is the same on every day."""
        found = {}
        for name, value in values.items():
            key = f"{owner}.{name}"
            if key in self.codes:
                value = self.codes[key][value]
            elif key in self.numbers:
                factor, shift = self.numbers[key]
                value = value * factor + shift
            found[name] = value
        return found


def _by_value(old: Sequence[str], new: Sequence[str], first: int = FIRST_ID) -> Tensor:
    return torch.from_numpy(row_sources(old, new, first))
