r"""Trains and times RecTools' SASRec (softmax loss) on our splits: the peer of the benchmarks.

It runs in an environment of its own, because RecTools pins an older numpy and pyarrow, and so it
imports nothing of ours but its protocol (``peer_protocol``). ``MALLOC_*`` keeps glibc from
returning the large logits to the system at every step, which is faster; set it for every side of a
comparison:

    python3 -m venv peer-env
    peer-env/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0" "pyarrow<22"
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
        peer-env/bin/python -m pipelines.peer_rectools --events events.parquet --out runs/peer

Protocol: leave-one-out by ``--order``. Of a user with three events or more, the last is the test
target, the one before it the validation target and the rest training; a shorter user is all
training. The catalogue is every item with a training event. Items of the user's history before the
target are filtered, ties count against the target, and a target outside the catalogue is a miss
that stays in the denominator. RecTools trains on the last ``length + 1`` events of a user, so an
item found only in older events has no embedding there: it scores minus infinity.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.peer_protocol import (
    MISS,
    FloatArray,
    IntArray,
    Split,
    count_ranks,
    leave_one_out,
    rank_metrics,
)

CHECKED_USERS = 64
PACKAGES = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas", "pyarrow")


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one indented JSON object, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_ranks(path: Path, split: Split, ranks: IntArray) -> None:
    """Write the test rank of each evaluated user, from 0, ``MISS`` where unreachable."""
    table = pa.table({"user_id": split.user_ids[split.evaluated], "rank": ranks})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def to_dataset(users: IntArray, items: IntArray) -> Any:
    """RecTools dataset of events that are already in order within each user."""
    from rectools.dataset import Dataset  # type: ignore[import-not-found, unused-ignore]

    moments = pd.to_datetime(np.arange(len(users)), unit="s")
    frame = {"user_id": users, "item_id": items, "weight": 1.0, "datetime": moments}
    return Dataset.construct(pd.DataFrame(frame))


def history_dataset(split: Split, users: IntArray, *, test: bool) -> Any:
    """RecTools dataset of the users' histories before their targets."""
    histories = [split.history(int(user), test=test) for user in users]
    return to_dataset(np.repeat(users, [len(h) for h in histories]), np.concatenate(histories))


class Scorer:
    """Scores of a fitted model over the catalogue, without RecTools' data frames.

    Args:
        model: A fitted (or fitting) ``SASRecModel``.
        split: Its split.
        length: Number of history items the model reads.
    """

    def __init__(self, model: Any, split: Split, length: int) -> None:
        codes = np.arange(int(split.items.max()) + 1)
        to_model = model.data_preparator.item_id_map.to_internal
        self.model, self.split, self.length = model, split, length
        # Internal id 0 is RecTools' padding, here also an item without an embedding.
        self.model_ids = to_model.reindex(codes).fillna(0).to_numpy(np.int64)
        self.columns = np.full(len(codes), -1, np.int64)
        self.columns[split.catalogue] = np.arange(len(split.catalogue))
        self.catalogue_ids = self.model_ids[split.catalogue]

    def scores(self, users: IntArray, *, test: bool) -> tuple[FloatArray, IntArray, IntArray]:
        """Scores ``(B, N)`` before filtering, and the rows and columns to filter."""
        import torch

        backbone = self.model.torch_model
        inputs = np.zeros((len(users), self.length), np.int64)
        rows, columns = [], []
        for row, user in enumerate(users):
            history = self.split.history(int(user), test=test)
            known = self.model_ids[history]
            known = known[known > 0][-self.length :]
            inputs[row, self.length - len(known) :] = known
            seen = self.columns[history]
            columns.append(seen[seen >= 0])
            rows.append(np.full(len(columns[-1]), row))
        with torch.no_grad():
            embeddings = backbone.item_model.get_all_embeddings()
            encoded = backbone.encode_sessions({"x": torch.from_numpy(inputs)}, embeddings)
            logits = encoded[:, -1] @ embeddings[self.catalogue_ids].T
        scores: FloatArray = logits.float().numpy()
        scores[(inputs == 0).all(axis=1)] = 0  # nothing known of the user: every item ties
        scores[:, self.catalogue_ids == 0] = -np.inf
        return scores, np.concatenate(rows), np.concatenate(columns)

    def ranks(self, *, test: bool) -> IntArray:
        """Rank of every evaluated user's target, in blocks of users, ``(V,)``."""
        users = self.split.evaluated
        block = max(1, min(512, 2**26 // len(self.split.catalogue)))
        self.model.torch_model.eval()
        ranks = []
        for first in range(0, len(users), block):
            chosen = users[first : first + block]
            targets = [self.split.target(int(user), test=test) for user in chosen]
            scores, rows, columns = self.scores(chosen, test=test)
            ranks.append(count_ranks(scores, self.columns[targets], rows, columns))
        return np.concatenate(ranks)

    def agreement(self, k: int = 10) -> float:
        """Share of RecTools' own top ``k`` slots that hold our item, over a few test users."""
        users = self.split.evaluated[:CHECKED_USERS]
        self.model.torch_model.eval()
        scores, rows, columns = self.scores(users, test=True)
        scores[rows, columns] = -np.inf
        ours = self.split.catalogue[np.argsort(-scores, axis=1, kind="stable")[:, :k]]
        dataset = history_dataset(self.split, users, test=True)
        theirs = self.model.recommend(users, dataset, k=k, filter_viewed=True)
        top = {user: group.to_numpy() for user, group in theirs.groupby("user_id")["item_id"]}
        same = [np.mean(ours[i, : len(top[u])] == top[u]) for i, u in enumerate(users) if u in top]
        return float(np.mean(same))


def build_model(args: argparse.Namespace, callback: Any, **trainer: Any) -> Any:
    """A SASRec with the softmax loss and a silent Lightning trainer on the CPU."""
    from pytorch_lightning import (  # type: ignore[import-not-found, unused-ignore]
        Trainer,
        seed_everything,
    )
    from rectools.models import SASRecModel  # type: ignore[import-not-found, unused-ignore]

    seed_everything(args.seed, verbose=False)
    model = SASRecModel(
        n_blocks=args.layers,
        n_heads=args.heads,
        n_factors=args.width,
        dropout_rate=args.dropout,
        session_max_len=args.length,
        loss="softmax",
        lr=args.lr,
        batch_size=args.batch_size,
        recommend_torch_device="cpu",
    )
    model._trainer = Trainer(  # RecTools' documented way to set one after construction
        accelerator="cpu",
        devices=1,
        precision=args.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **trainer,
    )
    return model


def make_clock(seconds: float | None, warmup_steps: int) -> Any:
    """A Lightning callback that counts steps and real targets and times them.

    Args:
        seconds: Stop once this much time was trained; ``None`` for no such limit.
        warmup_steps: First steps, which are neither timed nor counted.
    """
    from pytorch_lightning import Callback  # type: ignore[import-not-found, unused-ignore]

    class Clock(Callback):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.steps, self.targets, self.skipped = 0, 0, 0
            self.begin, self.cpu_begin, self.paused = 0.0, 0.0, 0.0
            self.last, self.step_ms, self.loss = 0.0, list[float](), math.nan

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return self  # RecTools fits a deep copy of its trainer; we read this object

        def seconds(self) -> float:
            return time.perf_counter() - self.begin - self.paused

        def on_train_start(self, *_: Any) -> None:
            self.begin = self.last = time.perf_counter()
            self.cpu_begin = time.process_time()

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if self.skipped < warmup_steps:
                self.skipped += 1
                self.on_train_start()
                return
            now = time.perf_counter()
            self.step_ms.append(1e3 * (now - self.last))
            self.last = now
            self.steps += 1
            self.targets += int((batch["y"] != 0).sum())
            self.loss = float(outputs["loss"])
            if seconds is not None and self.seconds() >= seconds:
                trainer.should_stop = True

        def report(self) -> dict[str, float]:
            elapsed = self.seconds()
            return {
                "train_seconds": elapsed,
                "cpu_seconds": time.process_time() - self.cpu_begin,
                "steps": self.steps,
                "targets": self.targets,
                "targets_per_second": self.targets / elapsed,
                "step_ms_mean": 1e3 * elapsed / max(self.steps, 1),
                "step_ms_median": float(np.median(self.step_ms)) if self.step_ms else math.nan,
            }

    return Clock()


def describe(args: argparse.Namespace, split: Split) -> dict[str, Any]:
    """The part of a result that is known before training."""
    return {
        "model": "RecTools SASRecModel(loss='softmax')",
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "data": {
            "events": len(split.items),
            "users": len(split.user_ids),
            "evaluated_users": len(split.evaluated),
            "training_events": len(split.train_items),
            "catalogue": len(split.catalogue),
        },
    }


def run_quality(args: argparse.Namespace, split: Split) -> dict[str, Any]:
    """Train with early stopping on validation NDCG@10, then rank the test targets."""
    import torch

    clock = make_clock(args.seconds, warmup_steps=0)
    best: dict[str, Any] = {"epoch": 0, "ndcg": -1.0, "state": None, "validation": {}}
    log: list[dict[str, Any]] = []
    training: dict[str, float] = {}
    head = describe(args, split)

    def save(scorer: Scorer, epochs: int, **more: Any) -> dict[str, Any]:
        ranks = scorer.ranks(test=True)
        known = int((scorer.catalogue_ids > 0).sum())
        head["data"]["items_with_embedding"] = known
        result = head | {
            "epochs": epochs,
            "best_epoch": best["epoch"],
            **training,
            "parameters": sum(p.numel() for p in scorer.model.torch_model.parameters()),
            "validation": best["validation"],
            "test": rank_metrics(ranks),
            "test_misses": int((ranks == MISS).sum()),
            **more,
        }
        write_ranks(args.out / "ranks.parquet", split, ranks)
        write_json(args.out / "result.json", result)
        return result

    def after_epoch(trainer: Any, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % args.eval_every and epoch < args.epochs and not trainer.should_stop:
            return
        training.update(clock.report())
        paused = time.perf_counter()
        scorer = Scorer(model, split, args.length)
        metrics = rank_metrics(scorer.ranks(test=False))
        line = {"epoch": epoch, "loss": clock.loss} | training | {"validation": metrics}
        log.append(line)
        lines = "".join(json.dumps(entry) + "\n" for entry in log)
        write_atomically(args.out / "log.jsonl", lines.encode())
        print(json.dumps(line), file=sys.stderr, flush=True)
        if metrics["ndcg@10"] > best["ndcg"]:
            state = {k: v.clone() for k, v in module.torch_model.state_dict().items()}
            best.update(epoch=epoch, ndcg=metrics["ndcg@10"], state=state, validation=metrics)
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_atomically(args.out / "best.pt", buffer.getvalue())
            save(scorer, epoch, finished=False)
        waited = sum(entry["epoch"] > best["epoch"] for entry in log)
        trainer.should_stop = trainer.should_stop or waited >= args.patience
        module.train()
        clock.last = time.perf_counter()
        clock.paused += clock.last - paused

    clock.on_train_epoch_end = after_epoch
    model = build_model(args, clock, max_epochs=args.epochs)
    model.fit(to_dataset(split.train_users, split.train_items))
    model.torch_model.load_state_dict(best["state"])
    scorer = Scorer(model, split, args.length)
    return save(scorer, log[-1]["epoch"], finished=True, recommend_agreement=scorer.agreement())


def run_train_speed(args: argparse.Namespace, split: Split) -> dict[str, Any]:
    """Time training for ``--epochs`` or ``--seconds``, after the warm-up steps."""
    clock = make_clock(args.seconds, args.warmup_steps)
    limits = {"max_epochs": args.epochs}
    finished: dict[str, float] = {}
    clock.on_train_epoch_end = lambda *_: finished.update(clock.report())
    build_model(args, clock, **limits).fit(to_dataset(split.train_users, split.train_items))
    if not clock.steps:
        raise ValueError(f"--warmup-steps ({args.warmup_steps}) must be under the steps trained.")
    return describe(args, split) | finished


def run_recommend_speed(args: argparse.Namespace, split: Split) -> dict[str, Any]:
    """Time RecTools' own ``recommend`` for all users, after one training step."""
    dataset = to_dataset(split.train_users, split.train_items)
    clock = make_clock(None, warmup_steps=0)
    model = build_model(args, clock, max_epochs=1, limit_train_batches=1)
    model.fit(dataset)
    users = np.unique(split.train_users)
    model.recommend(users[:256], dataset, k=10, filter_viewed=True)
    seconds = []
    for _ in range(args.repeats):
        begin = time.perf_counter()
        model.recommend(users, dataset, k=10, filter_viewed=True)
        seconds.append(time.perf_counter() - begin)
    median = float(np.median(seconds))
    timing = {"users": len(users), "seconds": seconds, "users_per_second": len(users) / median}
    return describe(args, split) | timing


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=Path, required=True, help="parquet: user_id, item_id")
    parser.add_argument("--order", default="seq_pos", help="column that orders a user's events")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    modes = ("quality", "train-speed", "recommend-speed")
    parser.add_argument("--mode", choices=modes, default="quality")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--length", type=int, default=200, help="history items read")
    parser.add_argument("--epochs", type=int, default=100, help="at most, warm-up included")
    parser.add_argument("--batch-size", type=int, default=128, help="users in a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--patience", type=int, default=5, help="evaluations without a new best")
    parser.add_argument("--eval-every", type=int, default=2, help="epochs")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--seconds", type=float, help="stop training after this many seconds")
    parser.add_argument("--warmup-steps", type=int, default=5, help="untimed, train-speed only")
    parser.add_argument("--repeats", type=int, default=3, help="timings, recommend-speed only")
    parser.add_argument("--max-users", type=int, help="keep the first users, for a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one mode and write ``result.json``."""
    import warnings

    import torch

    args = parse(argv)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        table = pq.read_table(args.events, columns=["user_id", "item_id", args.order])
        events = table.to_pandas()
        if args.max_users is not None:
            events = events[events["user_id"].isin(np.unique(events["user_id"])[: args.max_users])]
        split = leave_one_out(events["user_id"], events["item_id"], events[args.order])
    except (OSError, ValueError) as error:
        print(f"{args.events}: {error}", file=sys.stderr)
        return 1
    if args.mode == "quality":
        result = run_quality(args, split)
    else:
        run = run_train_speed if args.mode == "train-speed" else run_recommend_speed
        result = run(args, split)
        write_json(args.out / "result.json", result)
    shown = {k: v for k, v in result.items() if k not in ("config", "versions", "data")}
    print(json.dumps(shown, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
