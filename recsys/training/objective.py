"""Queries and labels → the total loss and its terms by name. The only place terms are added.

Each step optimises one task. With a funnel, step k's task moves from the weakest behavior to the
strongest; without one, steps before the last may learn a coarse code of the item (category or
cluster) and the last the item itself. Every step but the coarse ones is read through the item head.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.batch import ContextBatch, Labels
from recsys.data.negatives import NegativeSampler
from recsys.losses.binary import binary_loss
from recsys.losses.contrastive import item_to_user_loss, user_to_item_loss
from recsys.losses.ranking import candidate_loss, set_contrastive_loss
from recsys.losses.softmax import full_softmax_loss, sampled_softmax_loss
from recsys.model.onepiece import ItemVectors, ModelOutput, OnePiece
from recsys.training.candidates import CandidateConfig, draw_candidates
from recsys.types import FIRST_ID, PAD

LossName = Literal["softmax", "sampled_softmax", "bce", "u2i", "i2u"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is optimised."""

    prefix_loss: LossName | Literal["none"] = "softmax"
    step_losses: tuple[LossName, ...] = ("softmax",)
    num_negatives: int = 512
    """Negatives a batch shares, for sampled softmax and BCE."""
    negatives: Literal["uniform", "popularity"] = "uniform"
    prefix_weight: float = 1.0
    step_weight: float = 1.0
    """Of the mean over steps."""
    targets: Literal["item", "coarse_to_fine"] = "item"
    """What steps learn where logs have no funnel."""
    coarse_weight: float = 1.0
    temperature: float = 1.0
    """Of the softmax losses."""
    contrast_temperature: float = 1.0
    """η of the U2I and I2U losses."""
    teacher_weight: float = 0.0
    """Of a graph teacher: cross-entropy of a step against the target's co-occurrence neighbours."""
    rank_weight: float = 1.0
    """Of the mean over tasks of the ranking stage."""
    set_weight: float = 1.0
    """Of the ranking's set-contrastive loss beside its binary cross-entropy."""
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    """Where candidates are drawn and not given."""

    def __post_init__(self) -> None:
        """Check the weights."""
        for name in (
            "prefix_weight",
            "step_weight",
            "coarse_weight",
            "teacher_weight",
            "rank_weight",
            "set_weight",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0.")
        for name in ("temperature", "contrast_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0.")
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives ({self.num_negatives}) must be at least 1.")
        if not self.step_losses:
            raise ValueError("step_losses (()) must name at least one; step_weight=0 has no steps.")

    @property
    def samples(self) -> bool:
        """Whether negatives are drawn, so that a step looks up only its unique items."""
        whole = "softmax" in {self.prefix_loss, *self.step_losses} or self.teacher_weight > 0
        return not whole


@dataclass(frozen=True, slots=True)
class Teacher:
    """Co-occurrence neighbours of every item, for soft targets."""

    neighbours: Tensor
    """Internal ids, (N, J) int64; ``PAD`` where there are fewer."""
    weights: Tensor
    """Shares, (N, J) float32; rows sum to 1, or to 0 where an item has no neighbours."""


def step_tasks(num_steps: int, num_tasks: int) -> tuple[int, ...]:
    """The task of each step 0 … K: from the weakest to the last; K = 0 answers the last.

    Example:
        >>> step_tasks(0, 3), step_tasks(2, 3), step_tasks(3, 3), step_tasks(2, 1)
        ((2,), (0, 1, 2), (0, 0, 1, 2), (0, 0, 0))
    """
    return tuple(max(0, num_tasks - 1 - (num_steps - k)) for k in range(num_steps + 1))


class Objective:
    """Losses of one model: names, weights, negatives.

    Args:
        config: What is optimised.
        sampler: Draws negatives; None where no loss samples.
        coarse: Coarse code of every item, (N,) int64, for coarse → fine targets and negatives.
        teacher: Soft targets of the steps; None for plain ones.
        groups: G and C of candidates that are drawn here; None where the batches bring them or
            nothing is ranked.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        sampler: NegativeSampler | None = None,
        coarse: Tensor | None = None,
        teacher: Teacher | None = None,
        groups: tuple[int, int] | None = None,
    ) -> None:
        needs = {config.prefix_loss, *config.step_losses} & {"sampled_softmax", "bce"}
        if needs and sampler is None:
            raise ValueError(f"the losses {sorted(needs)} draw negatives: a sampler is required.")
        if config.targets == "coarse_to_fine" and (coarse is None or coarse.max() < FIRST_ID):
            raise ValueError(
                "targets 'coarse_to_fine' requires the items' coarse codes, and there are none: "
                "prepare the data set with them."
            )
        self.config, self.sampler, self.coarse, self.teacher = config, sampler, coarse, teacher
        self.groups = groups

    def __call__(
        self, model: OnePiece, batch: ContextBatch, labels: Labels, *, reason: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model and its losses.

        Args:
            model: In training mode.
            batch: What it reads.
            labels: What it should answer.
            reason: Whether the steps are trained; False leaves the prefix head alone.

        Returns:
            The total, a scalar, and its terms by name, detached: unweighted but for
            ``coarse_weight``, ``teacher_weight`` and ``set_weight``, which their terms contain.

        Raises:
            ValueError: If no loss has anything to train.
        """
        config = self.config
        if "prefix" not in model.heads and config.prefix_loss != "none" and config.prefix_weight:
            raise ValueError(
                "encoder.attention 'full' has no prefix head to train: set "
                "train.objective.prefix_weight to 0."
            )
        negative, log_q = None, None
        if self.sampler is not None:
            negative, log_q = self.sampler.sample(config.num_negatives)
            negative, log_q = (
                negative.to(labels.next_item.device),
                log_q.to(labels.next_item.device),
            )
        ids = None
        draws_candidates = self._ranks(model, batch) and batch.requests.candidates is None
        if config.samples and negative is not None and not draws_candidates:
            parts = [batch.history.item, labels.next_item, labels.task_item, negative]
            given = batch.requests.candidates
            parts += [] if given is None else [given.item]
            anchors = batch.requests.anchor_item
            parts += [] if anchors is None else [anchors]
            ids = torch.unique(torch.cat([part.flatten() for part in parts]))
        asked = batch.requests.cut.numel() > 0
        ranks = reason and asked and self._ranks(model, batch)
        reason = reason and asked and (config.step_weight > 0 or ranks)
        with torch.set_grad_enabled(self._trains_retrieval(model)):
            items = model.embed_items(ids)
            output = model(batch, items, reason=reason)
        drawn = None if negative is None or log_q is None else (negative, log_q)
        terms: dict[str, Tensor] = {}
        total = labels.next_item.new_zeros((), dtype=torch.float32)
        if config.prefix_loss != "none" and config.prefix_weight:
            target = labels.next_item.flatten()
            rows = (target != PAD).nonzero()[:, 0]
            query = output.prefix.flatten(0, 1).index_select(0, rows)
            target, user = target[rows], rows // labels.next_item.shape[1]
            loss = self._loss(config.prefix_loss, model, items, query, target, user, drawn)
            terms[f"prefix/{config.prefix_loss}"] = loss
            total = total + config.prefix_weight * loss
        if output.steps and config.step_weight:
            step_terms = self._steps(model, output, labels, drawn)
            terms |= step_terms
            total = total + config.step_weight / len(output.steps) * sum(step_terms.values())
        if ranks:
            rank_terms = self._rank(model, output, labels)
            terms |= rank_terms
            total = total + config.rank_weight * sum(rank_terms.values())
        if not terms:
            raise ValueError(
                f"there is nothing to train: prefix_loss is {config.prefix_loss!r} with weight "
                f"{config.prefix_weight}, and no steps are reasoned in this epoch."
            )
        return total, {name: term.detach() for name, term in terms.items()}

    def _trains_retrieval(self, model: OnePiece) -> bool:
        """Whether anything but an isolated ranking is optimised."""
        config = self.config
        by_prefix = config.prefix_loss != "none" and config.prefix_weight > 0
        by_steps = model.reasoner is not None and config.step_weight > 0
        return by_prefix or by_steps or not model.config.ranker.isolated

    def _ranks(self, model: OnePiece, batch: ContextBatch) -> bool:
        given = batch.requests.candidates is not None or self.groups is not None
        return model.can_rank and given and self.config.rank_weight > 0

    def _rank(self, model: OnePiece, output: ModelOutput, labels: Labels) -> dict[str, Tensor]:
        """Losses of the ranking stage: each the mean over tasks."""
        candidates, level = output.batch.requests.candidates, labels.candidate_level
        if candidates is None or level is None:
            assert self.groups is not None
            groups, group_size = self.groups
            candidates, level = draw_candidates(
                self.config.candidates,
                query=model.query(output, model.heads[-1]),
                vectors=output.items.vectors,
                task_item=labels.task_item,
                num_trained=model.config.data.num_trained_items,
                coarse=None if self.coarse is None else self.coarse.to(labels.task_item.device),
                groups=groups,
                group_size=group_size,
            )
        found = model.rank(output, candidates)
        valid = candidates.item != PAD
        tasks = found.logits.unbind(dim=-1)
        answers = [(0, logits) for logits in found.early] + list(enumerate(tasks))
        binary = [candidate_loss(logits, level > task, valid) for task, logits in answers]
        terms = {"rank/bce": torch.stack(binary).mean()}
        if self.config.set_weight:
            sets = [set_contrastive_loss(logits, level > task, valid) for task, logits in answers]
            terms["rank/scl"] = self.config.set_weight * torch.stack(sets).mean()
        return terms

    def _steps(
        self,
        model: OnePiece,
        output: ModelOutput,
        labels: Labels,
        drawn: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Tensor]:
        config, items = self.config, output.items
        if model.config.reasoner.isolated:
            items = ItemVectors(items.vectors.detach(), items.ids)
        last = len(output.steps) - 1
        terms: dict[str, Tensor] = {}
        for k, task in enumerate(step_tasks(last, model.config.data.num_tasks)):
            target = labels.task_item[..., task]
            valid = target != PAD
            query, gold = output.steps[k][valid], target[valid]
            user = torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)[valid]
            coarse_step = config.targets == "coarse_to_fine" and k < last
            if coarse_step and self.coarse is not None and model.coarse_head is not None:
                code = self.coarse.to(gold.device)[gold]
                logits = model.coarse_head(query)
                known = code >= FIRST_ID
                if known.any():
                    terms[f"step{k}/coarse"] = config.coarse_weight * F.cross_entropy(
                        logits[known], code[known]
                    )
                continue
            for name in config.step_losses:
                terms[f"step{k}/{name}"] = self._loss(name, model, items, query, gold, user, drawn)
            if self.teacher is not None and config.teacher_weight:
                terms[f"step{k}/teacher"] = config.teacher_weight * self._teach(
                    model, items, query, gold
                )
        return terms

    def _loss(
        self,
        name: str,
        model: OnePiece,
        items: ItemVectors,
        query: Tensor,
        target: Tensor,
        user: Tensor,
        drawn: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        config = self.config
        if name == "softmax":
            # The catalogue of the loss is the trained items: the others score by features alone.
            trained = items.vectors[FIRST_ID : model.config.data.num_id_rows]
            return full_softmax_loss(
                query, trained, target - FIRST_ID, temperature=config.temperature
            )
        gold = items.take(target)
        if name == "u2i":
            return user_to_item_loss(query, gold, target, temperature=config.contrast_temperature)
        if name == "i2u":
            return item_to_user_loss(
                query, gold, target, user, temperature=config.contrast_temperature
            )
        if drawn is None or self.sampler is None:
            raise ValueError(f"the loss {name!r} draws negatives: a sampler is required.")
        negative, log_q = drawn
        vectors = items.take(negative)
        if name == "bce":
            hit = target[:, None] == negative
            return binary_loss((query * gold).sum(dim=-1), query @ vectors.T, ~hit)
        return sampled_softmax_loss(
            query,
            gold,
            vectors,
            target,
            negative,
            log_q=log_q,
            temperature=config.temperature,
        )

    def _teach(self, model: OnePiece, items: ItemVectors, query: Tensor, gold: Tensor) -> Tensor:
        """Cross-entropy against the co-occurrence neighbours of the target."""
        assert self.teacher is not None
        neighbours = self.teacher.neighbours.to(gold.device)[gold]
        weights = self.teacher.weights.to(gold.device)[gold]
        trained = items.vectors[FIRST_ID : model.config.data.num_id_rows]
        return full_softmax_loss(
            query,
            trained,
            (neighbours - FIRST_ID).clamp(min=0),
            weight=weights,
            temperature=self.config.temperature,
        )
