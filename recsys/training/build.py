"""An objective with what it needs of the data: negatives, coarse codes, the graph teacher."""

import numpy as np
import torch

from recsys.context.config import ContextConfig
from recsys.data.cooccurrence import cooccurrence
from recsys.data.dataset import PreparedDataset
from recsys.data.negatives import TableSampler
from recsys.training.objective import Objective, ObjectiveConfig, Teacher


def build_objective(
    config: ObjectiveConfig, dataset: PreparedDataset, context: ContextConfig | None = None
) -> Objective:
    """Fit an objective's constants on the training part.

    Args:
        config: What is optimised.
        dataset: Where the training part is.
        context: Whether candidates are drawn, and how many; None draws none.

    Returns:
        The objective.
    """
    catalogue = dataset.catalogue
    sampled = {config.prefix_loss, *config.step_losses} & {"sampled_softmax", "bce"}
    groups = None
    if context is not None and context.candidates == "built":
        groups = (context.groups, context.group_size)
    return Objective(
        config,
        sampler=TableSampler(catalogue.train_count, config.negatives) if sampled else None,
        coarse=catalogue.coarse,
        teacher=graph_teacher(dataset) if config.teacher_weight else None,
        groups=groups,
    )


def graph_teacher(dataset: PreparedDataset, num_neighbours: int = 10) -> Teacher:
    """Co-occurrence neighbours of every item over the training events, as soft targets.

    Args:
        dataset: Where the training part is.
        num_neighbours: J, neighbours an item has at most.

    Returns:
        Neighbours by weight, and their shares.

    Source:
        ManCAR (2602.20093) constrains steps by a co-occurrence graph; here the target's own
        neighbours share its credit.
    """
    user, item = dataset.training_events("item")
    graph = cooccurrence(
        user, item, num_items=dataset.catalogue.num_items, num_neighbours=num_neighbours
    )
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    order = np.lexsort((graph.indices, -graph.data, rows))
    place = np.arange(len(rows)) - graph.indptr[rows]
    neighbours = np.zeros((graph.shape[0], num_neighbours), dtype=np.int64)
    weights = np.zeros((graph.shape[0], num_neighbours), dtype=np.float32)
    neighbours[rows, place] = graph.indices[order]
    weights[rows, place] = graph.data[order]
    total = weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return Teacher(torch.from_numpy(neighbours), torch.from_numpy(shares))
