"""What a training run is judged by: the validation part, through both stages of the model."""

from pipelines.configs import RunConfig
from recsys.context.anchors import AnchorReader
from recsys.context.impressions import RankingBatch, impression_batches
from recsys.context.loader import evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.ranking_scorers import gauc_of
from recsys.evaluation.run import evaluate
from recsys.evaluation.scorers import ModelScorer
from recsys.model.onepiece import OnePiece
from recsys.ranking.calibrate import task_names
from recsys.training.loop import Validate


def validation(
    run: RunConfig, dataset: PreparedDataset, anchors: AnchorReader | None, device: str
) -> Validate:
    """Read the validation part once.

    Args:
        run: How histories are read, how many users are asked, which head recommends.
        dataset: The prepared data set.
        anchors: Reads preference anchors, where the run has some.
        device: Where the model is.

    Returns:
        Judges a model: ``<head>/<metric>`` of every head, under the plain names those of the
        recommending head, or of the best step where the prefix head is not trained, and
        ``rank/<task>/gauc`` where lists were shown. Sets the model's ``answer_head``.
    """
    asked = list(
        evaluation_batches(
            dataset,
            run.context,
            part="validation",
            batch_size=256,
            max_users=run.validation_users,
            anchors=anchors,
        )
    )
    shown: list[RankingBatch] = []
    if run.context.candidates == "impressions":
        shown = list(
            impression_batches(
                dataset,
                run.context,
                part="validation",
                batch_size=256,
                max_requests=run.validation_users,
                anchors=anchors,
            )
        )
    tasks, group_size = task_names(dataset.manifest), run.context.group_size
    # Which head recommends is a question of retrieval, whatever the run is stopped by.
    decisive = "ndcg@10" if run.train.metric.startswith("rank/") else run.train.metric

    def validate(model: OnePiece) -> dict[str, float]:
        found = evaluate(
            [ModelScorer(model, device=device)], asked, dataset.catalogue, k=(10,), list_k=0
        )
        metrics = {name.partition("/")[2]: value for name, value in found.means().items()}
        deepest_first = reversed(model.heads if run.answer == "best" else model.heads[-1:])
        answer = max(deepest_first, key=lambda head: metrics.get(f"{head}/{decisive}", 0.0))
        model.answer_head = answer
        if shown:
            metrics |= gauc_of(model, shown, tasks, group_size=group_size)
        # A prefix head that is not trained stays as it is, and would make the first epoch the best.
        judged = answer
        if steps := [head for head in model.heads if head != "prefix"]:
            if not run.train.objective.prefix_weight:
                judged = max(steps, key=lambda head: metrics.get(f"{head}/{decisive}", 0.0))
        return {name: metrics[f"{judged}/{name}"] for name in ("ndcg@10", "recall@10")} | metrics

    return validate
