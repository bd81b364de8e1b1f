"""Vocabularies of events from the training part: behaviors, domains, event features."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.data.buckets import Provisional
from recsys.data.features import Codes, feature_kind, fit_vocabulary, moments
from recsys.data.histories import Tally
from recsys.data.read import EventReader
from recsys.schema import SKIP, Feature, FeatureKind
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, UNKNOWN

DEFAULT_BEHAVIOR = "interaction"
"""The one behavior of a log without a behavior column."""
_MOST_BEHAVIORS = 127 - FIRST_BEHAVIOR


def event_kinds(
    reader: EventReader, *, categorical: Sequence[str] = (), text: Sequence[str] = ()
) -> dict[str, FeatureKind]:
    """Decide the kind of each declared event feature.

    Args:
        reader: The log, which names the features and knows their types.
        categorical: Features whose numbers are names.
        text: Features declared as text: categorical ones whose values have vectors.

    Returns:
        Categorical or numeric, by name.

    Raises:
        ValueError: If files disagree, or a feature declared as text is not a string column.
    """
    kinds: dict[str, FeatureKind] = {}
    for name in reader.columns.event_features:
        types = {f.schema.field(name).type for f in reader.files}
        found = {
            feature_kind(name, t, categorical=categorical, text=text)
            for t in types
            if not pa.types.is_null(t)
        }
        if name in text:
            found = {"categorical"}
        if len(found) > 1:
            raise ValueError(
                f"event feature {name!r} is a number in one file and text in another; list it in "
                "categorical_features or make the files agree."
            )
        kinds[name] = found.pop() if found else "categorical"
    return kinds


def fit_behaviors(
    codes: Provisional, tally: Tally, funnel: Sequence[str], target: str | None
) -> tuple[tuple[str, ...], npt.NDArray[np.int8]]:
    """Name the behaviors: the funnel first, then the others that training has, by name.

    Args:
        codes: Provisional codes of the log.
        tally: What training sees.
        funnel: Declared tasks, weakest first.
        target: Declared target behavior.

    Returns:
        The names, and the final code of each provisional one: ``UNKNOWN`` where training has none.
        A log without behaviors has one name and one code.

    Raises:
        ValueError: If a declared behavior is not in the log, or there are too many to tell apart.
    """
    names = codes.behaviors.texts()
    declared = list(dict.fromkeys([*funnel, *([target] if target is not None else [])]))
    if not names:
        if declared:
            raise ValueError(f"{declared} need a behavior column, and the log has none.")
        return (DEFAULT_BEHAVIOR,), np.array([FIRST_BEHAVIOR], np.int8)
    check_behaviors(codes, funnel, target)
    trained = {name for name, count in zip(names, tally.behaviors, strict=True) if count}
    known = (*funnel, *sorted(trained - set(funnel)))
    if len(known) > _MOST_BEHAVIORS:
        raise ValueError(
            f"The log has {len(known)} different behaviors, at most {_MOST_BEHAVIORS} can be told "
            "apart; is columns.behavior the right column?"
        )
    final = {name: i + FIRST_BEHAVIOR for i, name in enumerate(known)}
    return known, np.array([final.get(n, UNKNOWN) for n in names], np.int8)


def add_skip(codes: Provisional) -> int:
    """Make room for negative feedback among the behaviors.

    Args:
        codes: Provisional codes of the events; a log without behaviors gets its one by name.

    Returns:
        The provisional code of ``SKIP``.

    Raises:
        ValueError: If the log has a behavior of that name.
    """
    if SKIP in codes.behaviors.texts():
        raise ValueError(
            f"negative_feedback would mix with the log's own behavior {SKIP!r}; rename that one."
        )
    if not len(codes.behaviors):
        codes.behaviors.encode(pa.array([DEFAULT_BEHAVIOR]))
    return int(codes.behaviors.encode(pa.array([SKIP]))[0])


def check_behaviors(codes: Provisional, funnel: Sequence[str], target: str | None) -> None:
    """Refuse a declared behavior that the log does not have.

    Args:
        codes: Provisional codes of the log.
        funnel: Declared tasks.
        target: Declared target behavior.

    Raises:
        ValueError: If one is missing; the message lists what the log has.
    """
    names = codes.behaviors.texts()
    for name in (*funnel, *([target] if target is not None else [])):
        if name not in names:
            raise ValueError(f"behavior {name!r} is not in the log; it has {sorted(names)}.")


def target_codes(
    codes: Provisional, funnel: Sequence[str], target: str | None, skip: int | None = None
) -> npt.NDArray[np.bool_] | None:
    """Tell which provisional behaviors may be targets.

    Args:
        codes: Provisional codes of the log.
        funnel: Declared tasks, weakest first.
        target: Declared target behavior.
        skip: Provisional code of negative feedback.

    Returns:
        (behaviors,) bool: the target and every stronger task; without one all but negative
        feedback; None where all may.
    """
    if target is None:
        return None if skip is None else np.arange(len(codes.behaviors)) != skip
    if not len(codes.behaviors):
        return None
    accepted = {target}
    if target in funnel:
        accepted |= set(funnel[funnel.index(target) :])
    return np.array([name in accepted for name in codes.behaviors.texts()], bool)


def fit_events(
    codes: Provisional, kinds: dict[str, FeatureKind], tally: Tally, min_count: int = 1
) -> tuple[tuple[Feature, ...], dict[str, Codes], dict[str, list[str]]]:
    """Fit the declared event features.

    Args:
        codes: Provisional codes of the log.
        kinds: Kind of each feature.
        tally: What training sees.
        min_count: Training events a value needs to be in a vocabulary.

    Returns:
        The features; by name, the final code of each provisional one; by name, the values in code
        order.
    """
    features: list[Feature] = []
    lookups: dict[str, Codes] = {}
    values: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        if kind == "numeric":
            mean, scale = moments(*tally.sums[name])
            features.append(Feature(name=name, kind=kind, mean=mean, scale=scale))
            continue
        vocabulary = fit_vocabulary(codes.features[name].texts(), tally.features[name], min_count)
        lookups[name], values[name] = vocabulary.lookup, vocabulary.values
        features.append(Feature(name=name, kind=kind, rows=len(vocabulary.values) + FIRST_ID))
    return tuple(features), lookups, values


def write_event_texts(
    folder: Path,
    names: Sequence[str],
    vocabularies: dict[str, list[str]],
    encode: Callable[[Sequence[str]], npt.NDArray[np.float32]],
) -> tuple[Feature, ...]:
    """Write text vectors of the values of event features, ``events.<name>.npy``.

    Args:
        folder: The data set.
        names: Categorical event features.
        vocabularies: Their values in code order.
        encode: Turns texts into vectors of one width.

    Returns:
        What was written, a feature of kind ``text`` a file: one vector a code, zeros for the
        reserved two.
    """
    features = []
    for name in names:
        vectors = encode(["", "", *vocabularies[name]]).astype(np.float32)
        vectors[:FIRST_ID] = 0
        np.save(folder / f"events.{name}.npy", vectors, allow_pickle=False)
        rows, width = vectors.shape
        features.append(Feature(name=name, kind="text", rows=rows, width=width))
    return tuple(features)


def fit_domains(codes: Provisional, tally: Tally) -> tuple[tuple[str, ...], Codes | None]:
    """Name the domains that training has.

    Args:
        codes: Provisional codes of the log.
        tally: What training sees.

    Returns:
        The names in order, and the final domain code of each provisional item; (), None where the
        log has no domains.
    """
    if not len(codes.domains):
        return (), None
    of_item = codes.item_domains()
    trained = np.bincount(of_item, weights=tally.items, minlength=len(codes.domains))
    names = codes.domains.texts()
    known = sorted(n for n, count in zip(names, trained, strict=True) if count)
    final = {name: i + FIRST_ID for i, name in enumerate(known)}
    lookup = np.array([final.get(n, UNKNOWN) for n in names], np.int32)
    return tuple(known), lookup[of_item]
