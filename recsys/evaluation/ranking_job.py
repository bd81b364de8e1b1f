"""The ranking stage's whole evaluation: models and a data set in, a folder with the report out.

``lists.parquet`` has a row a list and scorer, from which every figure can be worked out again::

    user_id, timestamp      string, int64       name the list
    item_id                 list<string>        external ids; null where unknown
    level                   list<int8>          0, or s + 1 of the strongest task s reached
    scorer                  string
    logit.<task>            list<float32>       not calibrated
    score                   list<float64>       what the list is ordered by
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.config import write_json
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.impressions import Part, RankingBatch, RequestLists, impression_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.boosted import CandidateFeatures, fit_boosted
from recsys.evaluation.candidates import retrieved_lists
from recsys.evaluation.compare import REPORT_FILE
from recsys.evaluation.models import EvaluationConfig, Progress, load_model, model_names
from recsys.evaluation.ranking import CandidateScorer, Floats, Logits, RankingTable, score_lists
from recsys.evaluation.ranking_report import (
    RankingProtocol,
    RankingReport,
    build_ranking_report,
    ranking_markdown,
)
from recsys.evaluation.ranking_scorers import ModelRanking, PopularityOrder, RetrievalOrder
from recsys.evaluation.slices import external_user_ids
from recsys.ranking.calibrate import Calibration, declared_task, task_names
from recsys.ranking.formula import FinalScore

LISTS_FILE = "lists.parquet"
Baseline = Literal["retrieval", "popular", "boosted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingConfig:
    """How the ranking stage is tested, beyond what both stages share."""

    num_candidates: int = 200
    """Items retrieved a list, where the data set holds no impressions."""
    final_score: str | None = None
    """What lists are ordered by: a task or a formula; None is the last task."""
    groupings: int = 3
    """Groupings each list is ranked under, so that their influence is known; 1 = do not look."""
    baselines: tuple[Baseline, ...] = ("retrieval", "popular", "boosted")
    """What every model must beat; ``retrieval`` is each model's own first stage."""
    boosted_part: Literal["training", "validation"] | None = None
    """Lists the boosted trees are fitted on; ``training`` needs impressions. None takes it where
    there are some: more lists make better trees."""
    fit_lists: int = 20_000
    """Lists that calibrations and trees are fitted on, at most."""
    calibrate: bool = False
    """Save each model's calibration into its folder, for the cascade."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("num_candidates", "groupings", "fit_lists"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")


def report_on_ranking(
    models: Sequence[Path],
    data: Path,
    out: Path,
    config: EvaluationConfig,
    ranking: RankingConfig,
    *,
    replicates: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> RankingReport:
    """Test the ranking stages of models, and write everything that was found.

    Args:
        models: Folders of models; the first one's retrieval builds lists where there are no
            impressions.
        data: The prepared data set.
        out: Folder for ``report.json``, ``report.md`` and ``lists.parquet``.
        config: What both stages share: part, users (here lists), batch size, device.
        ranking: The rest.
        replicates: Bootstrap samples of the intervals.
        seed: Of the bootstrap and the trees.
        progress: Told of the lists done.

    Returns:
        The report.

    Raises:
        ValueError: If the data set or a model cannot be read or does not fit, a model has no
            ranking stage, or the final score is no formula of its columns.
    """
    stage = _Stage(models, PreparedDataset(data), config, ranking, seed, progress)
    fitted_on = stage.table("validation", ranking.fit_lists, groupings=1)
    calibrations = {
        name: Calibration.identity(stage.tasks)
        if name == "boosted" and stage.boosted_part == "validation"
        else Calibration.fit(stage.tasks, logits, fitted_on.level)
        for name, logits in fitted_on.logits.items()
    }
    if ranking.calibrate:
        for folder, name in zip(models, stage.models, strict=True):
            calibrations[name].save(folder)
    table = stage.table(config.part, config.max_users, groupings=ranking.groupings)
    final = FinalScore(
        ranking.final_score or declared_task(stage.dataset.manifest, stage.tasks),
        stage.tasks,
        stage.dataset.catalogue,
    )
    scores = {name: _scores(name, table, calibrations, final) for name in table.logits}
    protocol = RankingProtocol(
        part=config.part,
        split=stage.dataset.manifest.split.kind,
        source=stage.source,
        num_candidates=0 if stage.source == "impressions" else ranking.num_candidates,
        filter_seen=stage.source != "impressions" and config.filter_seen,
        final_score=final.formula,
        groupings=ranking.groupings,
    )
    report = build_ranking_report(
        table,
        protocol,
        calibrations,
        scores,
        models=stage.models,
        pairs=stage.pairs,
        replicates=replicates,
        seed=seed,
    )
    if "boosted" in ranking.baselines and "boosted" not in table.logits:
        warning = (
            "The boosted baseline was left out: it would be tested on the lists it was fitted on."
        )
        report = replace(report, warnings=(*report.warnings, warning))
    _write(out, report, table, scores, stage.dataset)
    return report


class _Stage:
    """Models, baselines and lists of one evaluation."""

    def __init__(
        self,
        folders: Sequence[Path],
        dataset: PreparedDataset,
        config: EvaluationConfig,
        ranking: RankingConfig,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.dataset, self._config, self._ranking = dataset, config, ranking
        self._progress = progress
        self.tasks = task_names(dataset.manifest)
        self.models = model_names(folders)
        self._loaded = [load_model(folder, dataset, device=config.device) for folder in folders]
        for name, (_, model) in zip(self.models, self._loaded, strict=True):
            if not model.can_rank:
                raise ValueError(
                    f"The model {name} has no ranking stage: train it with --ranker.decoder own."
                )
        if not folders and not dataset.impressions:
            raise ValueError(
                f"{dataset.path} holds no impressions, so candidates are what a model retrieves: "
                "name one with --model."
            )
        self.source = "impressions" if dataset.impressions else self.models[0]
        self.boosted_part = ranking.boosted_part or (
            "training" if dataset.impressions else "validation"
        )
        self._lists: dict[tuple[Part, int | None], tuple[RequestLists, ...]] = {}
        self._groups = self._scorers(seed)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each model against its baselines, and against the first model."""
        common = [b for b in ("popular", "boosted") if b in self._names]
        found = [(name, self.models[0]) for name in self.models[1:]]
        for name in self.models:
            own = [f"{name}/retrieval"] if "retrieval" in self._ranking.baselines else []
            found += [(name, other) for other in (*own, *common)]
        return found

    @property
    def _names(self) -> list[str]:
        return [scorer.name for scorers in self._groups.values() for scorer in scorers]

    def _scorers(self, seed: int) -> dict[ContextConfig, list[CandidateScorer]]:
        """What is tested, by how its requests are assembled; baselines read as the first model."""
        groups: dict[ContextConfig, list[CandidateScorer]] = {}
        device, number = self._config.device, len(self.tasks)
        reads = "retrieval_score" in (self._ranking.final_score or "")
        first: RetrievalOrder | None = None
        for name, (context, model) in zip(self.models, self._loaded, strict=True):
            own = RetrievalOrder(model, num_tasks=number, name=f"{name}/retrieval", device=device)
            first = first or own
            scorers = groups.setdefault(context, [])
            scorers.append(ModelRanking(model, name=name, device=device))
            if "retrieval" in self._ranking.baselines or reads:
                scorers.append(own)
        context = self._loaded[0][0] if self._loaded else ContextConfig()
        scorers = groups.setdefault(context, [])
        catalogue, manifest = self.dataset.catalogue, self.dataset.manifest
        if "popular" in self._ranking.baselines:
            scorers.append(PopularityOrder(catalogue, num_tasks=number))
        part = self.boosted_part
        if "boosted" in self._ranking.baselines and part != self._config.part:
            features = CandidateFeatures(
                catalogue, behaviors=manifest.codes_at_least(None), retrieval=first
            )
            lists = self._batches(context, part, self._ranking.fit_lists)
            with torch.inference_mode():
                scorers.append(fit_boosted(lists, features, num_tasks=number, seed=seed))
        if not any(groups.values()):
            raise ValueError("There is nothing to evaluate: name a model or a baseline.")
        return {context: scorers for context, scorers in groups.items() if scorers}

    def _batches(
        self, context: ContextConfig, part: Part, limit: int | None
    ) -> Iterator[RankingBatch]:
        return impression_batches(
            self.dataset,
            context,
            part=part,
            batch_size=self._config.batch_size,
            max_requests=limit,
            lists=None if self.dataset.impressions else self._retrieved(part, limit),
            anchors=self._anchors(context),
        )

    def _retrieved(self, part: Part, limit: int | None) -> tuple[RequestLists, ...]:
        if part == "training":
            raise ValueError(
                "boosted_part ('training') needs impressions, and the data set has none: fit the "
                "trees on 'validation'."
            )
        if (part, limit) not in self._lists:
            context, model = self._loaded[0]
            self._lists[part, limit] = retrieved_lists(
                self.dataset,
                model,
                context,
                part=part,
                num_candidates=self._ranking.num_candidates,
                filter_seen=self._config.filter_seen,
                max_users=limit,
                batch_size=self._config.batch_size,
                anchors=self._anchors(context),
                device=self._config.device,
            )
        return self._lists[part, limit]

    def _anchors(self, context: ContextConfig) -> AnchorReader | None:
        return AnchorReader.open(self.dataset.path, context) if context.anchors else None

    def table(self, part: Part, limit: int | None, *, groupings: int) -> RankingTable:
        """Score the lists of a part by everything that is tested."""
        found: RankingTable | None = None
        for context, scorers in self._groups.items():
            batches = self._batches(context, part, limit)
            if self._progress is not None:
                batches = _told(batches, self._progress, f"{scorers[0].name}, {part}")
            table = score_lists(
                scorers, batches, self.tasks, group_size=context.group_size, salts=groupings
            )
            found = table if found is None else found.merge(table)
        assert found is not None
        return found


def _scores(
    name: str, table: RankingTable, calibrations: dict[str, Calibration], final: FinalScore
) -> list[Floats]:
    """What the lists of one scorer are ordered by, under each of its groupings."""
    logits = (table.logits[name], *table.regrouped.get(name, ()))
    if final.task is not None:  # its own order, which a calibration must not turn round
        return [x[:, final.task].astype(np.float64) for x in logits]
    own = f"{name}/retrieval"
    retrieval = next((x for n, x in table.logits.items() if n == own), None)
    if retrieval is None:
        retrieval = next((x for n, x in table.logits.items() if n.endswith("/retrieval")), None)
    if retrieval is None:
        if "retrieval_score" in final.columns:
            raise ValueError(
                f"The final score {final.formula!r} reads retrieval_score, which needs a model."
            )
        retrieval = np.zeros_like(table.logits[name])

    def score(x: Logits) -> Floats:
        probabilities = calibrations[name].apply(torch.from_numpy(x))
        found = final(
            probabilities, torch.from_numpy(retrieval[:, 0]), torch.from_numpy(table.item)
        )
        return found.numpy()

    return [score(x) for x in logits]


def _told(
    batches: Iterator[RankingBatch], progress: Progress, stage: str
) -> Iterator[RankingBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.request)
        progress(stage, done, done)


def _write(
    folder: Path,
    report: RankingReport,
    table: RankingTable,
    scores: dict[str, list[Floats]],
    dataset: PreparedDataset,
) -> None:
    """Write the report and the lists, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = pa.array(table.offsets, pa.int32())

    def lists(values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, values)

    facts = {
        "user_id": pa.array(external_user_ids(dataset, table.user_index), pa.string()),
        "timestamp": pa.array(table.timestamp),
        "item_id": lists(_item_ids(dataset).take(pa.array(table.item))),
        "level": lists(pa.array(table.level.astype(np.int8))),
    }
    temporary = folder / f".{LISTS_FILE}.tmp"
    writer: pq.ParquetWriter | None = None
    for name, logits in table.logits.items():
        part = pa.table(
            {
                **facts,
                "scorer": pa.array([name] * len(table.request)).dictionary_encode(),
                **{
                    f"logit.{task}": lists(pa.array(logits[:, s]))
                    for s, task in enumerate(table.tasks)
                },
                "score": lists(pa.array(scores[name][0])),
            }
        )
        writer = writer or pq.ParquetWriter(temporary, part.schema, compression="zstd")
        writer.write_table(part)
    assert writer is not None
    writer.close()
    os.replace(temporary, folder / LISTS_FILE)
    text = folder / ".report.md.tmp"
    text.write_text(ranking_markdown(report), encoding="utf-8")
    os.replace(text, folder / "report.md")
    write_json(folder / REPORT_FILE, report)


def _item_ids(dataset: PreparedDataset) -> pa.Array:
    """External ids by internal one; null for the reserved rows."""
    ids = dataset.catalogue.item_ids.cast(pa.string())
    reserved = pa.array(np.arange(len(ids)) < 2)
    return pa.compute.if_else(reserved, pa.scalar(None, pa.string()), ids)
