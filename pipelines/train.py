"""A prepared data set → a trained model.

python -m pipelines train demo --data data/demo/prepared --out data/demo/run
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from pipelines.configs import RUNS, RunConfig
from pipelines.console import table
from pipelines.provenance import write_provenance
from pipelines.validation import validation
from recsys.config import to_dict
from recsys.context.anchors import AnchorReader
from recsys.context.descriptors import situation_features
from recsys.context.loader import TrainingBatches
from recsys.data.dataset import PreparedDataset
from recsys.model.config import DataSizes, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained
from recsys.schema import Manifest
from recsys.training.build import build_objective
from recsys.training.loop import TrainResult, train
from recsys.training.seed import keep_freed_memory, seed_everything
from recsys.training.warm_start import warm_start as grow_from


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where a run reads and writes."""

    data: Path
    """The prepared data set."""
    out: Path
    """The run's folder: model/, checkpoints/, metrics.jsonl, run.json."""
    warm_start: Path | None = None
    """A trained model to start from; its vocabulary may be smaller than the data's."""
    device: str = "cpu"
    resume: bool = False
    """Go on from the run's last checkpoint."""
    overwrite: bool = False
    """Delete what an earlier run left in the folder."""


def run_training(run: RunConfig, paths: Paths) -> TrainResult:
    """Train one model and save the best weights under ``out/model``."""
    if not run.train.objective.prefix_weight and run.reasoner.isolated and not paths.warm_start:
        raise ValueError(
            "train.objective.prefix_weight is 0 and the steps are isolated, so the encoder would "
            "stay random: name a trained model with --warm-start."
        )
    prepare_folder(paths)
    keep_freed_memory()
    dataset = PreparedDataset(paths.data)
    config = model_config(run, dataset.manifest)
    anchors = AnchorReader.open(dataset.path, run.context) if run.context.anchors else None
    seed_everything(run.train.seed)
    model = OnePiece(config, dataset.catalogue)
    if paths.warm_start is not None:
        grow_from(model, dataset, paths.warm_start)
    write_provenance(paths.out, {"run": to_dict(run), "data": dataset.manifest.hashes})
    validate = validation(run, dataset, anchors, paths.device)

    def save_best(candidate: OnePiece) -> None:
        context = to_dict(run.context)
        save_pretrained(candidate, paths.out / "model", dataset.path, context=context)

    return train(
        model,
        TrainingBatches(
            dataset,
            run.context,
            rows=run.train.batch_rows,
            seed=run.train.seed,
            anchors=anchors,
        ),
        build_objective(run.train.objective, dataset, run.context),
        run.train,
        folder=paths.out,
        validate=validate,
        save_best=save_best,
        resume=paths.resume,
        device=torch.device(paths.device),
    )


def model_config(run: RunConfig, manifest: Manifest) -> RecommenderConfig:
    """What a run's model is on a data set."""
    context = run.context
    if (context.candidates == "none") != (run.ranker.decoder == "none"):
        raise ValueError(
            f"context.candidates is {context.candidates!r} and ranker.decoder "
            f"{run.ranker.decoder!r}: a ranking stage needs both, a retriever neither."
        )
    if context.candidates == "impressions" and not manifest.num_impressions:
        raise ValueError(
            "context.candidates is 'impressions', and the data set holds none: prepare it with "
            "--impressions, or take context.candidates 'built'."
        )
    return RecommenderConfig(
        data=DataSizes.of(
            manifest,
            situation=situation_features(manifest, context),
            anchor_lengths=context.anchor_lengths,
        ),
        encoder=replace(run.encoder, max_history=context.max_history),
        backbone=run.backbone,
        reasoner=run.reasoner,
        ranker=run.ranker,
    )


def prepare_folder(paths: Paths) -> None:
    """Make the run's folder, or say what stands in the way."""
    if paths.overwrite and paths.out.exists() and (paths.out / "run.json").exists():
        shutil.rmtree(paths.out)
    if (paths.out / "metrics.jsonl").exists() and not paths.resume:
        raise ValueError(
            f"--out {paths.out} holds an earlier run: --resume goes on with it, --overwrite "
            "deletes it."
        )
    paths.out.mkdir(parents=True, exist_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Run the job with command line arguments."""
    named = {name: (build.__doc__ or "", build()) for name, build in RUNS.items()}
    run_type = tyro.extras.subcommand_type_from_defaults(
        {name: value for name, (_, value) in named.items()},
        {name: text.splitlines()[0] for name, (text, _) in named.items()},
    )

    def job(
        run: Annotated[run_type, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        paths: Annotated[Paths, tyro.conf.arg(name="")],
    ) -> None:
        """Train a named run on a prepared data set."""
        result = run_training(run, paths)
        metric = "none" if result.best_metric is None else f"{result.best_metric:.4f}"
        table(
            "Trained",
            [
                ("best validation", f"{metric} at epoch {result.best_epoch}"),
                ("epochs", str(result.epochs)),
                ("seconds", f"{result.seconds:.0f}"),
                ("targets/s", f"{result.targets_per_second:,.0f}"),
                ("model", str(paths.out / "model")),
            ],
        )

    tyro.cli(
        job, args=argv, prog="python -m pipelines train", config=(tyro.conf.CascadeSubcommandArgs,)
    )
    return 0
