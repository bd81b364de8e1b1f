"""A trained model as its users see it: histories in, ranked data frame out, external ids.

    recommender = Recommender.from_pretrained("runs/movies/model")
    recommender.recommend(events, k=10)                        # a frame of raw events
    recommender.recommend(dataset, users=["u7", "u9"])         # users of a prepared data set
    recommender.recommend(events, stages="retrieval")          # without the ranking stage
    recommender.recommend(events, policy=recommender.policy(max_per_category=3))

Whatever could not be used (items the model does not know, rows without an id) is warned of and
counted in ``frame.attrs["notes"]``; what a policy did is in ``frame.attrs["policy"]``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
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

from recsys.cascade.answer import Cascade, Options, Stages
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
from recsys.cascade.lists import RankedLists, arrange, join
from recsys.cascade.retrieve import Candidates, Retriever
from recsys.cascade.rules import allowed_items, make_policy
from recsys.config import from_dict
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.data.anchors import FOLDER as ANCHORS
from recsys.data.dataset import Catalogue, PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.model.save import load_pretrained, save_pretrained
from recsys.ranking.calibrate import Calibration, task_names
from recsys.ranking.policy import Policy
from recsys.retrieval.approximate import HnswConfig
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
        folder: Model folder or prepared data set that holds its vocabularies, and the calibration
            of its tasks where there is one.
        candidates: ``trained`` recommends items with a training event; ``all`` the others too.
        hnsw: Search items approximately, by a graph of this size; None searches exactly.
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
        hnsw: HnswConfig | None = None,
    ) -> None:
        self.model = model
        self.catalogue = catalogue
        self.manifest = manifest
        self.context = context
        self.folder = Path(folder)
        device = next(model.parameters()).device
        self.retriever = Retriever(
            model,
            catalogue,
            manifest,
            context,
            candidates=candidates,
            hnsw=hnsw,
            anchors=AnchorReader.open(self.folder, context) if context.anchors else None,
            device=device,
        )
        calibration = Calibration.read(self.folder, task_names(manifest))
        self.cascade = Cascade(self.retriever, catalogue, calibration)
        self._index_recall: float | None = None
        self._cosine: tuple[Tensor, BruteForceIndex] | None = None
        self._cached_names: dict[bool, ItemNames] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        candidates: Candidates = "trained",
        hnsw: HnswConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a model folder; nothing in it is executed.

        Args:
            folder: What ``save_pretrained`` wrote.
            candidates: ``trained`` recommends items with a training event; ``all`` the others
                too, which the model knows only by their features.
            hnsw: Search items approximately, by a graph of this size; None searches exactly.
            device: Where to compute.

        Returns:
            The recommender.

        Raises:
            ValueError: If the folder is not a model of this version.
        """
        model, catalogue, manifest, context = load_pretrained(folder)
        config = from_dict(ContextConfig, context, where=f"{folder}/config.json context")
        model.to(device)
        return cls(
            model, catalogue, manifest, config, Path(folder), candidates=candidates, hnsw=hnsw
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder that ``from_pretrained`` reads: JSON, safetensors and the catalogue.

        Args:
            folder: Where; an older model there is replaced.
        """
        save_pretrained(self.model, Path(folder), self.folder, context=asdict(self.context))
        calibration = self.cascade.calibration
        if calibration != Calibration.identity(self.cascade.tasks):
            calibration.save(Path(folder))

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
        stages: Stages | None = None,
        num_candidates: int = 200,
        final_score: str | None = None,
        policy: Policy | None = None,
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
            stages: ``retrieval`` orders by the inner product; ``cascade`` ranks the best of these.
                None is the cascade where the model can rank.
            num_candidates: Retrieved items that are ranked; the others follow in their order.
            final_score: What ranked items are ordered by: a task, for its probability, or a
                formula such as ``p_click**0.5 * p_order * price``. None is the last task.
            policy: Rules to apply, as ``policy`` makes them.
            user_features: A row a user, where the model reads user features and ``histories`` is
                a frame.
            batch_size: Users read at once.

        Returns:
            ``user_id, item_id, rank, score, source`` (and ``domain``, where items are keyed by
            it), a row a recommendation, best first. ``source`` is ``cascade``, with the final score
            as score, ``retrieval``, with the inner product, or ``popular``, with the number of
            training events. The cascade adds ``p_<task>``, the calibrated probability of each
            task, and ``retrieval_score``. A user of whom every allowed item is filtered has fewer
            than k rows. Of an approximate index, ``attrs["index_recall"]`` tells the share of the
            exact top k that it found for users of the first call.

        Raises:
            ValueError: If a column is missing, no allowed item is known, ``histories`` was
                prepared with other vocabularies, or the model cannot do what is asked.
            TypeError: If ``histories`` is neither a frame nor a data set.
        """
        selection = self._select(histories, users, user_features)
        notes = selection.notes
        options = Options(
            k=k,
            stages=stages,
            num_candidates=num_candidates,
            final_score=final_score,
            policy=policy or Policy(),
            as_of=moment_s(as_of),
            filter_seen=filter_seen,
            allow=allowed_items(self._names(False), allow, deny, notes),
            anchors=self._anchors(histories),
            batch_size=batch_size,
        )
        effects: Counter[str] = Counter()
        found = []
        for bucket, rows in selection.parts:
            lists, told = self.cascade.answer(bucket, options, rows=rows)
            found.append(lists)
            effects.update(told)
        user_ids = selection.user_ids()
        popular, told = self.cascade.popular(options)
        lists = join([popular.rows(torch.arange(0)), *found])
        if users is not None:
            wanted = pa.array(list(dict.fromkeys(map(str, users))), pa.large_string())
            place = pc.index_in(wanted, value_set=user_ids)
            effects.update({name: count * place.null_count for name, count in told.items()})
            lists = arrange(lists, place, popular)
            user_ids = wanted
        notes["users_without_known_history"] = int(lists.is_popular.sum())
        shown = as_integers(user_ids) if selection.integer_users else user_ids
        tasks = self.cascade.tasks if lists.probabilities.shape[2] else ()
        table = score_columns(shown, lists, self._names(selection.integer_items), tasks)
        frame = plain(table)
        tell(notes)
        frame.attrs["notes"] = notes
        frame.attrs["policy"] = dict(effects)
        if self.retriever.is_approximate and found and self._index_recall is None:
            self._index_recall = self.retriever.index_recall(selection.parts[0][0], k)
        if self._index_recall is not None:
            frame.attrs["index_recall"] = self._index_recall
        return frame

    def policy(
        self,
        *,
        available: Sequence[Item] | None = None,
        diversity: float = 0.0,
        max_per_category: int | None = None,
        domain_places: Mapping[str, tuple[int, int | None]] | None = None,
    ) -> Policy:
        """Make the usual rules, in their usual order; ``recsys.ranking.policy`` has them singly.

        Args:
            available: External ids of the items that can be had; None for all.
            diversity: 0 … 1; how much an item's likeness to better ones costs it, by vectors.
            max_per_category: Items of a category (or cluster) among the first k, at most.
            domain_places: Domain → least and most items among the first k; most may be None.

        Returns:
            The policy.

        Raises:
            ValueError: If no available item is known, a number is out of its range, or the data
                set has no such domains or no categories.
        """
        notes: dict[str, int] = {}
        made = make_policy(
            self._names(False),
            self.catalogue,
            self.manifest,
            self.retriever.item_vectors,
            notes,
            available=available,
            diversity=diversity,
            max_per_category=max_per_category,
            domain_places=domain_places,
        )
        tell(notes)
        return made

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
        lists = RankedLists.of(found.cpu(), scores.cpu())
        table = score_columns(pa.array(np.arange(len(ids))), lists, names).drop(["source"])
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
            for row, context, _ in self.retriever.batches(
                bucket,
                rows[answerable],
                as_of=moment,
                batch_size=batch_size,
                anchors=self._anchors(histories),
            ):
                part[place[row].numpy()] = self.retriever.query(context).cpu().numpy()
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

    def _anchors(self, histories: Frame | PreparedDataset) -> AnchorReader | None:
        """A data set's own anchors, which are of each moment's past; None where it has none."""
        if not self.context.anchors or not isinstance(histories, PreparedDataset):
            return None
        has_tables = (histories.path / ANCHORS).is_dir()
        return AnchorReader.open(histories.path, self.context) if has_tables else None

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
