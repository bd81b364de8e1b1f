"""A trained model as its users see it: histories in, ranked data frame out, external ids.

    recommender = Recommender.from_pretrained("runs/movies/model")
    recommender.recommend(events, k=10)                        # a frame of raw events
    recommender.recommend(dataset, users=["u7", "u9"])         # users of a prepared data set

Whatever could not be used (items the model does not know, rows without an id) is warned of and
counted in ``frame.attrs["notes"]``.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.cascade.frames import (
    Frame,
    Item,
    ItemNames,
    as_integers,
    moment_s,
    plain,
    score_columns,
)
from recsys.cascade.histories import Selection, User, select_frame, select_prepared, tell
from recsys.cascade.retrieve import Candidates, Ranking, Retriever, arrange, join
from recsys.config import from_dict
from recsys.context.config import ContextConfig
from recsys.data.dataset import Catalogue, PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.model.save import load_pretrained, save_pretrained
from recsys.retrieval.index import BruteForceIndex
from recsys.schema import ITEM_ID, USER_ID, Manifest
from recsys.types import FIRST_ID

Moment = datetime | date | str | int


class Recommender:
    """A model, its catalogue and an index over its items.

    Args:
        model: In evaluation mode.
        catalogue: The items it was trained on.
        manifest: Of the data set it was trained on.
        context: How it reads histories.
        folder: Model folder or prepared data set that holds its vocabularies.
        candidates: ``trained`` recommends items with a training event; ``all`` the others too.
    """

    def __init__(
        self,
        model: OnePiece,
        catalogue: Catalogue,
        manifest: Manifest,
        context: ContextConfig,
        folder: Path,
        *,
        candidates: Candidates = "trained",
    ) -> None:
        self.model = model
        self.catalogue = catalogue
        self.manifest = manifest
        self.context = context
        self.folder = Path(folder)
        device = next(model.parameters()).device
        self.retriever = Retriever(
            model, catalogue, manifest, context, candidates=candidates, device=device
        )
        self._cosine: tuple[Tensor, BruteForceIndex] | None = None
        self._cached_names: dict[bool, ItemNames] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        candidates: Candidates = "trained",
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a model folder; nothing in it is executed.

        Args:
            folder: What ``save_pretrained`` wrote.
            candidates: ``trained`` recommends items with a training event; ``all`` the others
                too, which the model knows only by their features.
            device: Where to compute.

        Returns:
            The recommender.

        Raises:
            ValueError: If the folder is not a model of this version.
        """
        model, catalogue, manifest, context = load_pretrained(folder)
        config = from_dict(ContextConfig, context, where=f"{folder}/config.json context")
        return cls(
            model.to(device), catalogue, manifest, config, Path(folder), candidates=candidates
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder that ``from_pretrained`` reads: JSON, safetensors and the catalogue.

        Args:
            folder: Where; an older model there is replaced.
        """
        save_pretrained(self.model, Path(folder), self.folder, context=asdict(self.context))

    def recommend(
        self,
        histories: Frame | PreparedDataset,
        k: int = 10,
        *,
        users: Sequence[User] | None = None,
        as_of: Moment | None = None,
        filter_seen: bool = True,
        allow: Sequence[Item] | None = None,
        deny: Sequence[Item] | None = None,
        user_features: Frame | None = None,
        batch_size: int = 256,
    ) -> pd.DataFrame:
        """Recommend items to users.

        Users of whom no known item is visible get the items with the most training events.

        Args:
            histories: Raw events in the columns the model was trained on (a pandas, polars or
                pyarrow table), or a data set prepared with the model's vocabularies.
            k: Items a user.
            users: External ids of those to answer, in this order, ones without history included;
                None for everyone in ``histories``.
            as_of: The moment of recommending; events at or after it are not seen, and the time
                since the last event is measured to it. None answers right after each user's last
                event. Seconds since 1970, a time, or ISO 8601 text; UTC where it has no zone.
            filter_seen: Leave out items of the visible history.
            allow: External ids of the only items to recommend; None for all.
            deny: External ids of items never to recommend.
            user_features: A row a user, where the model reads user features and ``histories`` is
                a frame.
            batch_size: Users read at once.

        Returns:
            ``user_id, item_id, rank, score, source`` (and ``domain``, where items are keyed by
            it), a row a recommendation, best first. ``source`` is ``retrieval``, with the inner
            product as score, or ``popular``, with the number of training events. A user of whom
            every allowed item is filtered has fewer than k rows.

        Raises:
            ValueError: If a column is missing, no allowed item is known, or ``histories`` was
                prepared with other vocabularies.
            TypeError: If ``histories`` is neither a frame nor a data set.
        """
        moment = moment_s(as_of)
        selection = self._select(histories, users, user_features)
        notes = selection.notes
        allowed = self._allowed(allow, deny, notes)
        found = [
            self.retriever.rank(
                bucket,
                k,
                rows=rows,
                as_of=moment,
                filter_seen=filter_seen,
                allow=allowed,
                batch_size=batch_size,
            )
            for bucket, rows in selection.parts
        ]
        user_ids = selection.user_ids()
        popular = self.retriever.popular(k, allowed)
        ranking = join(found, k)
        if users is not None:
            wanted = pa.array(list(dict.fromkeys(map(str, users))), pa.large_string())
            ranking = arrange(ranking, pc.index_in(wanted, value_set=user_ids), popular)
            user_ids = wanted
        notes["users_without_known_history"] = int(ranking.is_popular.sum())
        shown = as_integers(user_ids) if selection.integer_users else user_ids
        frame = plain(score_columns(shown, ranking, self._names(selection.integer_items)))
        tell(notes)
        frame.attrs["notes"] = notes
        return frame

    def similar_items(self, item_ids: Sequence[Item], k: int = 10) -> pd.DataFrame:
        """Find the items whose vectors point the same way.

        Args:
            item_ids: External ids; (domain, item id) where items are keyed by both.
            k: Items for each.

        Returns:
            ``item_id, similar_item_id, rank, score`` (and domains), a row a pair, best first. The
            score is the cosine of the two vectors, which unlike an inner product does not favour
            popular items.

        Raises:
            ValueError: If an item is unknown.
        """
        ids = self._known(item_ids)
        if self._cosine is None:
            unit = F.normalize(self.retriever.item_vectors, dim=1)
            recommendable = self.retriever.recommendable.to(unit.device)
            self._cosine = unit, BruteForceIndex(unit, recommendable)
        unit, index = self._cosine
        at = ids.to(unit.device)
        scores, found = index.search(unit[at], k, exclude=at[:, None])
        names = self._names(all(isinstance(item, int) for item in item_ids))
        ranking = Ranking(found.cpu(), scores.cpu(), torch.zeros(len(ids), dtype=torch.bool))
        table = score_columns(pa.array(np.arange(len(ids))), ranking, names).drop(["source"])
        own = names.columns(ids.numpy()[table[USER_ID].to_numpy()])
        similar = [n for n in (ITEM_ID, "domain") if n in table.column_names]
        columns = own | {f"similar_{name}": table[name] for name in similar}
        columns |= {"rank": table["rank"], "score": table["score"]}
        return plain(pa.table(columns))

    def embed_items(self, item_ids: Sequence[Item] | None = None) -> pd.DataFrame:
        """Vectors of items.

        Args:
            item_ids: External ids; None for the whole catalogue, untrained items included.

        Returns:
            One row an item, indexed by ``item_id`` (and ``domain``), D float32 columns.

        Raises:
            ValueError: If an item is unknown.
        """
        ids = torch.arange(FIRST_ID, self.catalogue.num_items)
        if item_ids is not None:
            ids = self._known(item_ids)
        names = self._names(bool(item_ids) and all(isinstance(i, int) for i in item_ids or ()))
        index = plain(pa.table(names.columns(ids.numpy())))
        vectors = self.retriever.item_vectors[ids.to(self.retriever.device)]
        frame = pd.DataFrame(vectors.cpu().numpy())
        frame.index = (
            pd.MultiIndex.from_frame(index) if index.shape[1] > 1 else pd.Index(index[ITEM_ID])
        )
        return frame

    def embed_users(
        self,
        histories: Frame | PreparedDataset,
        *,
        users: Sequence[User] | None = None,
        as_of: Moment | None = None,
        user_features: Frame | None = None,
        batch_size: int = 256,
    ) -> pd.DataFrame:
        """Vectors of users: the answering queries, whose inner products with items are the scores.

        Args:
            histories: As in ``recommend``.
            users: As in ``recommend``.
            as_of: As in ``recommend``.
            user_features: As in ``recommend``.
            batch_size: Users read at once.

        Returns:
            One row a user with a known visible item, indexed by ``user_id``, D float32 columns.
            The others are warned of and left out.

        Raises:
            ValueError: As ``recommend`` does.
        """
        moment = moment_s(as_of)
        self.retriever.check_moment(moment)
        selection = self._select(histories, users, user_features)
        vectors = np.zeros((0, self.retriever.item_vectors.shape[1]), np.float32)
        kept, found = [], [vectors]
        for bucket, rows in selection.parts:
            answerable = self.retriever.answerable(bucket, rows, as_of=moment)
            kept.append(answerable)
            place = torch.zeros(bucket.num_users, dtype=torch.long)
            place[rows[answerable]] = torch.arange(int(answerable.sum()))
            part = np.zeros((int(answerable.sum()), vectors.shape[1]), np.float32)
            batches = self.retriever.queries(
                bucket, rows[answerable], as_of=moment, batch_size=batch_size
            )
            for row, query, _ in batches:
                part[place[row].numpy()] = query.cpu().numpy()
            found.append(part)
        user_ids = selection.user_ids()
        mask = torch.cat(kept).numpy() if kept else np.zeros(0, bool)
        num_asked = len(set(map(str, users))) if users is not None else len(user_ids)
        selection.notes["users_without_known_history"] = num_asked - int(mask.sum())
        tell(selection.notes)
        shown = as_integers(user_ids) if selection.integer_users else user_ids
        names = shown.filter(pa.array(mask)).to_pandas()
        return pd.DataFrame(np.concatenate(found), index=pd.Index(names, name=USER_ID))

    def _select(
        self,
        histories: Frame | PreparedDataset,
        users: Sequence[User] | None,
        user_features: Frame | None,
    ) -> Selection:
        if isinstance(histories, PreparedDataset):
            return select_prepared(
                histories, users, manifest=self.manifest, catalogue=self.catalogue
            )
        return select_frame(
            histories,
            users,
            model=self.folder,
            columns=self.manifest.columns,
            user_features=user_features,
        )

    def _allowed(
        self, allow: Sequence[Item] | None, deny: Sequence[Item] | None, notes: dict[str, int]
    ) -> Tensor | None:
        """Items that may be recommended, (N,) bool; unknown ids are counted in ``notes``."""
        if allow is None and deny is None:
            return None
        names = self._names(False)
        allowed = torch.full((self.catalogue.num_items,), allow is None)
        if allow is not None:
            known, unknown = names.internal(allow)
            if not len(known):
                raise ValueError(
                    f"allow ({len(allow)} items, such as {list(allow[:3])}) must hold at least one "
                    "item that the model knows."
                )
            allowed[known] = True
            notes["unknown_items_in_allow"] = len(unknown)
        if deny is not None:
            known, unknown = names.internal(deny)
            allowed[known] = False
            notes["unknown_items_in_deny"] = len(unknown)
        return allowed

    def _known(self, items: Sequence[Item]) -> Tensor:
        ids, unknown = self._names(False).internal(items)
        if unknown:
            raise ValueError(
                f"item_ids holds {len(unknown)} items that the model does not know, such as "
                f"{unknown[:3]}."
            )
        return ids

    def _names(self, integers: bool) -> ItemNames:
        if integers not in self._cached_names:
            self._cached_names[integers] = ItemNames(
                self.catalogue,
                with_domain=self.manifest.columns.domain is not None,
                integers=integers,
            )
        return self._cached_names[integers]
