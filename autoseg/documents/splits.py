"""Which cases train and which validate in each fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.errors import AutosegError
from autoseg.files import read_json, write_json

FOLDS = 5
SEED = 12345
SPLIT_FILES = ("splits.json", "splits_final.json")
"""Names of a splits file, ours and nnU-Net's, in the raw or the preprocessed folder of a dataset."""


@dataclass(frozen=True)
class Split:
    """The case ids of one fold, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def kfold(cases: Sequence[str], folds: int = FOLDS, seed: int = SEED) -> tuple[Split, ...]:
    """Shuffled folds over the sorted ids, the same as nnU-Net's (scikit-learn's KFold, 12345).

    With fewer cases than folds each is left out once; a single case validates itself.
    """
    ids = sorted(cases)
    if len(ids) < 2:
        return (Split(tuple(ids), tuple(ids)),)
    order = np.arange(len(ids))
    np.random.RandomState(seed).shuffle(order)
    held_out = np.array_split(order, min(folds, len(ids)))
    return splits_by([[ids[i] for i in fold] for fold in held_out])


def splits_by(held_out: Sequence[Sequence[str]]) -> tuple[Split, ...]:
    """The folds that hold out these cases, and train on those of all the others."""
    ids = sorted(case for fold in held_out for case in fold)
    splits = []
    for fold in held_out:
        chosen = set(fold)
        splits.append(Split(tuple(i for i in ids if i not in chosen), tuple(sorted(fold))))
    return tuple(splits)


def splits_file(folder: Path) -> Path | None:
    """The splits file in a folder, ours before nnU-Net's; None if there is none."""
    return next((folder / name for name in SPLIT_FILES if (folder / name).exists()), None)


def read_splits(path: Path, cases: Sequence[str]) -> tuple[Split, ...]:
    """The folds of a splits file: a list of {"train": […], "val": […]}, as nnU-Net writes it.

    Raises AutosegError for unknown cases, a case on both sides, or another shape of document.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise AutosegError(f'{path} must be a list of {{"train": […], "val": […]}}')
    known = set(cases)
    splits = []
    for number, entry in enumerate(value):
        if not isinstance(entry, dict) or not entry.get("train") or "val" not in entry:
            raise AutosegError(f'{path}: fold {number} must hold "train" and "val" lists of ids')
        train, held_out = (tuple(sorted(map(str, entry[key]))) for key in ("train", "val"))
        strangers = sorted({*train, *held_out} - known)
        if strangers:
            raise AutosegError(
                f"{path}: fold {number} names {strangers[0]!r}, which is no training case"
            )
        both = sorted(set(train) & set(held_out))
        if both:
            raise AutosegError(f"{path}: fold {number} has {both[0]!r} in train and in val")
        splits.append(Split(train, held_out))
    return tuple(splits)


def as_document(splits: Sequence[Split]) -> list[dict[str, list[str]]]:
    """The folds in nnU-Net's form, as JSON values."""
    return [{"train": list(s.train), "val": list(s.validation)} for s in splits]


def write_splits(path: Path, splits: Sequence[Split]) -> None:
    """Write the folds in nnU-Net's form, in one step.

    Raises ValueError for what `read_splits` would refuse: no fold, nothing to train on, or a case
    on both sides.
    """
    for number, split in enumerate(splits):
        if not split.train or set(split.train) & set(split.validation):
            raise ValueError(f"fold {number} trains on nothing, or on what it validates")
    if not splits:
        raise ValueError("there is no fold to write")
    write_json(path, as_document(splits))


def split_of(fold: str, splits: Sequence[Split], cases: Sequence[str]) -> Split:
    """The split of `fold` ("0", "1", … or "all"). Raises AutosegError naming the folds there are."""
    if fold == "all":
        ids = tuple(sorted(cases))
        return Split(ids, ids)
    if not fold.isdigit() or int(fold) >= len(splits):
        there = ", ".join(str(i) for i in range(len(splits)))
        raise AutosegError(f"there is no fold {fold!r}; the folds are {there}, or all")
    return splits[int(fold)]
