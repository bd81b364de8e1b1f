"""The whole of an evaluation: models and a data set in, a folder with the report out."""

import os
from collections.abc import Sequence
from pathlib import Path

from recsys.data.dataset import PreparedDataset
from recsys.evaluation.compare import write_report
from recsys.evaluation.figures import write_figures
from recsys.evaluation.markdown import markdown
from recsys.evaluation.models import EvaluationConfig, Progress, evaluate_models
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.evaluation.report import Report, build_report
from recsys.evaluation.slices import external_user_ids, slice_columns


def report_on(
    models: Sequence[Path],
    data: Path,
    out: Path,
    config: EvaluationConfig,
    *,
    replicates: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Test models and baselines, and write everything that was found.

    Args:
        models: Folders of models; none tests the baselines alone.
        data: The prepared data set.
        out: Folder for ``report.json``, ``report.md``, ``ranks.parquet`` and the figures.
        config: How to test.
        replicates: Bootstrap samples of the intervals.
        seed: Of the bootstrap.
        progress: Told of the users done.

    Returns:
        The report.

    Raises:
        ValueError: If the data set or a model cannot be read, or does not fit.
    """
    dataset = PreparedDataset(data)
    table = evaluate_models(models, dataset, config, progress=progress)
    protocol = EvaluationProtocol.of(
        dataset.manifest,
        part=config.part,
        candidates=config.candidates,
        filter_seen=config.filter_seen,
        num_users=table.num_users,
    )
    slices = slice_columns(table, dataset.catalogue, dataset)
    report = build_report(
        table, protocol, slices, baselines=config.baselines, replicates=replicates, seed=seed
    )
    write_report(
        out,
        report,
        table,
        user_ids=external_user_ids(dataset, table.user_index),
        item_ids=dataset.catalogue.item_ids.to_pylist(),
        slices=slices,
    )
    temporary = out / ".report.md.tmp"
    temporary.write_text(markdown(report, figures=write_figures(report, out)), encoding="utf-8")
    os.replace(temporary, out / "report.md")
    return report
