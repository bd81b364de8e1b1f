from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_world import tiny_model
from torch import Tensor

from recsys.batch import ContextBatch, Labels
from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches
from recsys.data.dataset import PreparedDataset
from recsys.data.negatives import TableSampler
from recsys.losses.softmax import full_softmax_loss
from recsys.model.onepiece import OnePiece
from recsys.training.build import build_objective
from recsys.training.objective import Objective, ObjectiveConfig, Teacher, step_tasks

ID_TABLE = "item_encoder.encoder.id_table.embeddings.id.weight"


def case(
    dataset: PreparedDataset, num_steps: int = 2, **reasoner: Any
) -> tuple[OnePiece, ContextBatch, Labels]:
    model = tiny_model(dataset, reasoner={"num_steps": num_steps, **reasoner})
    config = ContextConfig(max_history=12, requests_per_row=3)
    return model, *next(TrainingBatches(dataset, config).epoch(0))


def gradients(model: OnePiece, total: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_tasks_move_from_the_weakest_to_the_last() -> None:
    assert step_tasks(0, 1) == (0,)
    assert step_tasks(0, 3) == (2,)
    assert step_tasks(1, 3) == (1, 2)
    assert step_tasks(2, 3) == (0, 1, 2)
    assert step_tasks(4, 3) == (0, 0, 0, 1, 2)
    assert step_tasks(3, 1) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_weight": 0.25, "step_weight": 3.0},
        {"prefix_loss": "bce", "step_losses": ("softmax", "u2i", "i2u"), "num_negatives": 5},
        {"prefix_loss": "none", "step_losses": ("sampled_softmax",)},
        {"targets": "coarse_to_fine", "coarse_weight": 2.0},
        {"teacher_weight": 0.5},
    ],
)
@pytest.mark.parametrize("num_steps", [0, 2])
def test_terms_add_to_the_total_with_the_stated_weights(
    rich: PreparedDataset, options: dict[str, Any], num_steps: int
) -> None:
    model, batch, labels = case(rich, num_steps)
    config = ObjectiveConfig(**options)
    total, terms = build_objective(config, rich)(model, batch, labels)
    prefix = [v for name, v in terms.items() if name.startswith("prefix/")]
    steps = [v for name, v in terms.items() if name.startswith("step")]
    assert len(prefix) == (config.prefix_loss != "none")
    assert {name.split("/")[0] for name in terms} - {"prefix"} == {
        f"step{k}" for k in range(num_steps + 1)
    }
    expected = config.prefix_weight * sum(prefix)
    expected = expected + config.step_weight / (num_steps + 1) * sum(steps)
    torch.testing.assert_close(total, expected)
    assert all(not term.requires_grad for term in terms.values())


def test_every_loss_is_that_of_the_positions_and_requests_with_a_target(
    rich: PreparedDataset,
) -> None:
    model, batch, labels = case(rich)
    _, terms = Objective(ObjectiveConfig())(model, batch, labels)
    out, trained = model(batch), model.item_vectors()[2:12].clone()

    def by_hand(query: Tensor, target: Tensor) -> Tensor:
        kept = target != 0
        return F.cross_entropy(query[kept] @ trained.T, target[kept] - 2)

    torch.testing.assert_close(terms["prefix/softmax"], by_hand(out.prefix, labels.next_item))
    for k in range(3):  # click, cart, order
        expected = by_hand(out.steps[k], labels.task_item[..., k])
        torch.testing.assert_close(terms[f"step{k}/softmax"], expected)


def test_the_single_step_of_no_reasoning_learns_the_last_task(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich, num_steps=0)
    objective = Objective(ObjectiveConfig())
    before = objective(model, batch, labels)[1]["step0/softmax"]
    for task in range(3):
        item = labels.task_item.clone()
        item[..., task] = torch.where(item[..., task] > 0, item[..., task] % 10 + 2, 0)
        after = objective(model, batch, replace(labels, task_item=item))[1]["step0/softmax"]
        assert torch.equal(before, after) == (task != 2)


def test_a_zero_step_weight_sends_no_gradient_through_the_steps(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    total, terms = Objective(ObjectiveConfig(step_weight=0.0))(model, batch, labels)
    assert list(terms) == ["prefix/softmax"]
    found = gradients(model, total)
    assert not [n for n in found if n.startswith(("reasoner", "request", "latent_norm"))]
    alone = gradients(model, Objective(ObjectiveConfig())(model, batch, labels, reason=False)[0])
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[name], alone[name]) for name in found)


def test_a_zero_prefix_weight_sends_no_gradient_through_the_prefix_head(
    rich: PreparedDataset,
) -> None:
    model, batch, labels = case(rich)
    total, terms = Objective(ObjectiveConfig(prefix_weight=0.0))(model, batch, labels)
    assert not any(name.startswith("prefix") for name in terms)
    none = Objective(ObjectiveConfig(prefix_loss="none"))(model, batch, labels)[0]
    ours, theirs = gradients(model, total), gradients(model, none)
    assert ours.keys() == theirs.keys()
    assert "answer_norm.weight" not in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("weight", ["coarse_weight", "teacher_weight"])
def test_a_zero_weight_of_one_term_gives_it_no_gradient(rich: PreparedDataset, weight: str) -> None:
    model, batch, labels = case(rich)
    targets: Any = "coarse_to_fine" if weight == "coarse_weight" else "item"
    config = ObjectiveConfig(**{weight: 0.0, "targets": targets})  # type: ignore[arg-type]
    found = gradients(model, build_objective(config, rich)(model, batch, labels)[0])
    if weight == "coarse_weight":
        assert not found["coarse_head.weight"].any()
    else:
        plain = gradients(model, Objective(ObjectiveConfig())(model, batch, labels)[0])
        assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_loss": "sampled_softmax", "step_losses": ("sampled_softmax", "bce")},
        {"prefix_loss": "bce", "step_losses": ("u2i", "i2u")},
        {"prefix_loss": "sampled_softmax", "step_losses": ("bce",), "teacher_weight": 1.0},
    ],
)
def test_a_step_that_looks_up_its_unique_items_alone_learns_the_same(
    rich: PreparedDataset, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    model, batch, labels = case(rich)
    objective = build_objective(ObjectiveConfig(num_negatives=4, **options), rich)
    state = torch.get_rng_state()
    few = objective(model, batch, labels)
    few_gradients = gradients(model, few[0])
    torch.set_rng_state(state)
    monkeypatch.setattr(ObjectiveConfig, "samples", property(lambda self: False))
    whole = objective(model, batch, labels)
    whole_gradients = gradients(model, whole[0])
    for name in whole[1]:
        torch.testing.assert_close(few[1][name], whole[1][name])
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(few_gradients[name], gradient)


def test_sampled_losses_look_up_fewer_items_than_there_are(
    rich: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, labels = case(rich)
    asked: list[Tensor | None] = []
    original = OnePiece.embed_items
    monkeypatch.setattr(
        OnePiece, "embed_items", lambda self, ids=None: asked.append(ids) or original(self, ids)
    )
    options: dict[str, Any] = {"prefix_loss": "sampled_softmax", "num_negatives": 1}
    batch = replace(batch, history=replace(batch.history, item=batch.history.item.clamp(max=3)))
    labels = replace(labels, next_item=labels.next_item.clamp(max=3))
    labels = replace(labels, task_item=labels.task_item.clamp(max=3))
    config = ObjectiveConfig(step_losses=("bce",), **options)
    build_objective(config, rich)(model, batch, labels)
    assert asked[0] is not None
    assert len(asked[0]) <= 5  # 0, 1, 2, 3 and the negative
    Objective(ObjectiveConfig())(model, batch, labels)
    assert asked[1] is None


def test_coarse_steps_learn_codes_and_the_last_step_the_item(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    coarse = rich.catalogue.coarse
    config = ObjectiveConfig(targets="coarse_to_fine")
    _, terms = Objective(config, coarse=coarse)(model, batch, labels)
    assert set(terms) == {"prefix/softmax", "step0/coarse", "step1/coarse", "step2/softmax"}
    target = labels.task_item[..., 0]
    query = model(batch).steps[0][target != 0]
    expected = F.cross_entropy(model.coarse_head(query), coarse[target[target != 0]])
    torch.testing.assert_close(terms["step0/coarse"], expected)


def test_items_of_no_known_code_teach_no_coarse_step(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    coarse = rich.catalogue.coarse.clone()
    target = labels.task_item[..., 0]
    unknown = int(target[target != 0][0])
    coarse[unknown] = 1
    config = ObjectiveConfig(targets="coarse_to_fine")
    _, terms = Objective(config, coarse=coarse)(model, batch, labels)
    kept = (target != 0) & (target != unknown)
    logits = model.coarse_head(model(batch).steps[0][kept])
    torch.testing.assert_close(terms["step0/coarse"], F.cross_entropy(logits, coarse[target[kept]]))


def test_a_teacher_spreads_the_target_over_its_neighbours(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich, num_steps=0)
    neighbours = torch.zeros(15, 2, dtype=torch.int64)
    weights = torch.zeros(15, 2)
    neighbours[2:12, 0], neighbours[2:12:2, 1] = 4, 7
    weights[2:12, 0], weights[2:12:2, 1] = 1.0, 0.5
    weights[2:12:2, 0] = 0.5
    weights[3] = 0  # an item without neighbours teaches nothing
    config = ObjectiveConfig(teacher_weight=1.0)
    _, terms = Objective(config, teacher=Teacher(neighbours, weights))(model, batch, labels)
    target = labels.task_item[..., 2]
    valid = target != 0
    gold, query = target[valid], model(batch).steps[0][valid]
    log_p = (query @ model.item_vectors()[2:12].clone().T).log_softmax(dim=1)
    soft = torch.zeros(len(gold), 10)
    for row, item in enumerate(gold.tolist()):
        for column in range(2):
            soft[row, neighbours[item, column] - 2] += weights[item, column]
    expected = -(soft * log_p).sum() / soft.sum()
    torch.testing.assert_close(terms["step0/teacher"], expected)


def test_isolated_steps_leave_the_item_table_to_the_prefix_head(rich: PreparedDataset) -> None:
    for isolated in (False, True):
        model, batch, labels = case(rich, isolated=isolated)
        config = ObjectiveConfig(prefix_loss="none", step_losses=("softmax", "u2i", "bce"))
        found = gradients(model, build_objective(config, rich)(model, batch, labels)[0])
        touched = ID_TABLE in found and bool(found[ID_TABLE].any())
        assert touched != isolated
        assert found["reasoner.step"].any()


def test_in_batch_losses_never_contrast_requests_of_one_row(rich: PreparedDataset) -> None:
    """With a single row every other request is the same user's: I2U has nothing to learn."""
    model = tiny_model(rich)
    config = ContextConfig(max_history=12, requests_per_row=3)
    batch, labels = next(TrainingBatches(rich, config, rows=1).epoch(0))
    objective = Objective(ObjectiveConfig(prefix_loss="none", step_losses=("i2u",)))
    total, _ = objective(model, batch, labels)
    assert total.item() == 0


def test_targets_outside_the_trained_items_are_never_scored_against(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    objective = Objective(ObjectiveConfig())
    before = objective(model, batch, labels)[0]
    buffers = dict(model.item_encoder.named_buffers())
    kept = buffers["value_of_price"].clone()
    buffers["value_of_price"][12:] += 5  # the untrained items change
    after = objective(model, batch, labels)[0]
    buffers["value_of_price"].copy_(kept)
    assert torch.equal(before, after)


def test_temperatures_divide_the_scores_of_their_own_losses(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    plain = Objective(ObjectiveConfig(step_losses=("u2i",)))(model, batch, labels)[1]
    config = ObjectiveConfig(step_losses=("u2i",), temperature=2.0)
    halved = Objective(config)(model, batch, labels)[1]
    assert halved["step0/u2i"] == plain["step0/u2i"]
    valid = labels.next_item != 0
    expected = full_softmax_loss(
        model(batch).prefix[valid],
        model.item_vectors()[2:12].clone(),
        labels.next_item[valid] - 2,
        temperature=2.0,
    )
    torch.testing.assert_close(halved["prefix/softmax"], expected)


def test_losses_that_draw_negatives_need_a_sampler() -> None:
    with pytest.raises(ValueError, match=r"the losses \['bce', 'sampled_softmax'\] draw negatives"):
        Objective(ObjectiveConfig(prefix_loss="bce", step_losses=("sampled_softmax",)))


@pytest.mark.parametrize("coarse", [None, torch.tensor([0, 0, 1, 1])])
def test_coarse_targets_need_coarse_codes(coarse: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"'coarse_to_fine' .* coarse codes"):
        Objective(ObjectiveConfig(targets="coarse_to_fine"), coarse=coarse)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefix_weight": -1.0}, r"prefix_weight \(-1\.0\)"),
        ({"teacher_weight": -0.5}, r"teacher_weight \(-0\.5\)"),
        ({"num_negatives": 0}, r"num_negatives \(0\) must be at least 1"),
        ({"temperature": 0.0}, r"temperature \(0\.0\)"),
        ({"step_losses": ()}, r"step_losses \(\(\)\)"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**values)


def test_an_objective_with_nothing_to_train_says_so(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    objective = Objective(ObjectiveConfig(prefix_loss="none"))
    with pytest.raises(ValueError, match="nothing to train"):
        objective(model, batch, labels, reason=False)


def test_batches_without_a_target_cost_nothing(rich: PreparedDataset) -> None:
    model, batch, labels = case(rich)
    labels = Labels(torch.zeros_like(labels.next_item), torch.zeros_like(labels.task_item))
    config = ObjectiveConfig(
        prefix_loss="bce", step_losses=("softmax", "sampled_softmax", "bce", "u2i", "i2u")
    )
    sampler = TableSampler(rich.catalogue.train_count)
    total, _ = Objective(config, sampler=sampler)(model, batch, labels)
    assert total.item() == 0
    total.backward()
