"""New events through the vocabularies of a trained model: what a scoring job reads.

Nothing is fitted and nothing is held back: every event counts as known history
(``train_end = valid_end`` = number of events), and whatever the model has not seen is ``UNKNOWN``.
A model that reads negative feedback finds it in a log as events of behavior ``skip``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from recsys.config import from_dict, read_json, write_json
from recsys.data.buckets import (
    Provisional,
    Pseudonymise,
    Spill,
    buckets_for,
    each_bucket,
    sort_bucket,
    spill_events,
)
from recsys.data.features import StaticTable, frozen_vocabulary
from recsys.data.files import OnBadFile, list_files
from recsys.data.folder import check_target, replace_folder
from recsys.data.histories import Cutter, Finaliser, Tally, write_histories
from recsys.data.read import END_OF_TIME, EventReader, TimestampUnit
from recsys.schema import ColumnSpec, Manifest
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, UNKNOWN

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done and the total."""


def encode_histories(
    events: Sequence[str],
    *,
    model: Path,
    out: Path,
    users: Sequence[str] = (),
    columns: ColumnSpec | None = None,
    max_time: int = END_OF_TIME,
    timestamp_unit: TimestampUnit = "auto",
    max_reject_fraction: float = 0.01,
    on_bad_file: OnBadFile = "stop",
    num_buckets: int = 0,
    threads: int = 2,
    overwrite: bool = False,
    pseudonymise: Pseudonymise | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Turn raw events into histories with the ids of a trained model, out of core.

    Args:
        events: Parquet files or folders, local paths or URLs.
        model: Folder with ``manifest.json``, ``items.arrow`` and ``vocabularies.json``: a saved
            model or a prepared data set.
        out: Folder to write: ``histories/``, ``rejects/`` where there are any, ``manifest.json``.
        users: Files of the users table, where the model reads user features; a user without a row
            is unknown.
        columns: Where the new logs name their columns otherwise; features must be the model's own.
        max_time: Seconds since 1970; later events are rejects.
        timestamp_unit: Unit of integer timestamps.
        max_reject_fraction: Share of unusable rows above which the job stops.
        on_bad_file: Whether an unreadable file stops the job or is left out with a warning.
        num_buckets: Files to spread users over; 0 = one for every 1.5 million events.
        threads: Buckets worked on at once.
        overwrite: Replace ``out`` where it holds histories already.
        pseudonymise: As it was when the model's data were prepared.
        progress: Called as the work goes on.

    Returns:
        The manifest written: the model's own with the new counts. ``counts`` tells the drift:
        ``events.unknown_item``, ``items.known``, ``items.unknown``, ``events.unknown_behavior``,
        ``events.unknown_per_million``, ``users``.

    Raises:
        ValueError: If the events cannot be read with the model's columns.
    """
    known = from_dict(Manifest, read_json(model / "manifest.json"), where=f"{model}/manifest.json")
    spec = columns or known.columns
    _check_columns(spec, known.columns)
    check_target(out, overwrite)
    reader = EventReader(
        list_files(events, on_bad_file=on_bad_file), spec, max_time=max_time,
        timestamp_unit=timestamp_unit, on_bad_file=on_bad_file,
    )  # fmt: skip
    buckets = num_buckets or buckets_for(reader.total_rows)
    table = None
    if users and known.user_features:
        table = StaticTable(
            users, key=spec.user_id, features=[f.name for f in known.user_features],
            on_bad_file=on_bad_file,
        )  # fmt: skip
        if pseudonymise is not None:
            table.rename(pseudonymise)
    with replace_folder(out) as folder:
        spill = spill_events(
            reader, folder, num_buckets=buckets, pseudonymise=pseudonymise,
            kinds={f.name: f.kind for f in known.event_features}, progress=progress,
        )  # fmt: skip
        spill.check_rejects(max_reject_fraction, out)
        finaliser = frozen_finaliser(known, model, codes=spill.codes, users=table)
        tally = Tally.empty(spill.codes, ())
        cutter = Cutter(None)

        def work(index: int) -> tuple[Tally, str, str]:
            bucket = sort_bucket(spill.take(index))
            cuts = cutter(bucket)
            part = Tally.empty(spill.codes, ())
            part.add(bucket, cuts)
            return part, *write_histories(folder, index, finaliser.table(bucket, cuts))

        hashes = {}
        for done, (part, name, digest) in enumerate(each_bucket(work, buckets, threads)):
            tally.merge(part)
            hashes[name] = digest
            if progress is not None:
                progress("write", done + 1, buckets)
        manifest = replace(
            known, columns=spec, num_users=tally.users, num_buckets=buckets, rows_in=spill.rows_in,
            rows_out=spill.rows_out, rejects=dict(sorted(spill.rejects.items())),
            counts=_drift(finaliser, tally, spill), hashes=hashes,
        )  # fmt: skip
        write_json(folder / "manifest.json", manifest)
    return manifest


def _check_columns(new: ColumnSpec, known: ColumnSpec) -> None:
    for name in ("event_features", "situation", "user_features"):
        ours, theirs = getattr(new, name), getattr(known, name)
        if ours != theirs:
            raise ValueError(f"columns.{name} {ours} must be those of the model: {theirs}.")
    for name in ("domain", "timestamp"):
        if (getattr(new, name) is None) != (getattr(known, name) is None):
            raise ValueError(
                f"columns.{name} is {getattr(new, name)!r} but was {getattr(known, name)!r} when "
                "the model was trained."
            )


def _drift(finaliser: Finaliser, tally: Tally, spill: Spill) -> dict[str, int]:
    new = finaliser.items[: len(tally.items)] == UNKNOWN
    unknown = int(tally.items[new].sum())
    counts = {
        "events": spill.rows_out,
        "events.unknown_item": unknown,
        "events.unknown_per_million": round(1e6 * unknown / max(1, spill.rows_out)),
        "items.known": int((~new).sum()),
        "items.unknown": int(new.sum()),
        "users": tally.users,
    }
    if len(tally.behaviors):
        strange = finaliser.behaviors == UNKNOWN
        counts["events.unknown_behavior"] = int(tally.behaviors[strange].sum())
    for name, seen in tally.features.items():
        strange = finaliser.event_lookups[name][:-1] == UNKNOWN
        counts[f"events.unknown_{name}"] = int(seen[strange].sum())
    return counts


def frozen_finaliser(
    manifest: Manifest, model: Path, *, codes: Provisional, users: StaticTable | None
) -> Finaliser:
    """Finaliser for vocabularies that are already fixed.

    Args:
        manifest: Of the model's data set.
        model: Where ``items.arrow`` and ``vocabularies.json`` are.
        codes: Provisional codes of the new log.
        users: The new table of users, if there is one.

    Returns:
        The finaliser; whatever training has not seen is ``UNKNOWN``.
    """
    vocabularies: dict[str, list[str]] = read_json(model / "vocabularies.json")
    with pa.memory_map(str(model / "items.arrow")) as source:
        names = pa.ipc.open_file(source).read_all()["item_id"].to_pylist()
    items = {name: i for i, name in enumerate(names) if i >= FIRST_ID}
    behaviors = {name: i + FIRST_BEHAVIOR for i, name in enumerate(manifest.behaviors)}
    seen = codes.behaviors.texts() or list(manifest.behaviors[:1])
    domains = None
    if manifest.columns.domain is not None:
        known = {name: i + FIRST_ID for i, name in enumerate(manifest.domains)}
        of_domain = np.array([known.get(d, UNKNOWN) for d in codes.domains.texts()], np.int32)
        domains = of_domain[codes.item_domains()]
    return Finaliser(
        items=np.array([items.get(k, UNKNOWN) for k in codes.item_keys()], np.int32),
        item_domains=domains,
        behaviors=np.array([behaviors.get(b, UNKNOWN) for b in seen], np.int8),
        event_lookups={
            name: frozen_vocabulary(mapping.texts(), vocabularies[f"event.{name}"]).lookup
            for name, mapping in codes.features.items()
        },
        event_features=manifest.event_features,
        user_features=manifest.user_features,
        users=users,
        user_columns={
            f.name: users.apply(f, vocabularies.get(f"user.{f.name}", []))
            for f in manifest.user_features
        }
        if users is not None
        else {},
    )
