"""Which cases are held out together: one patient in one fold, every structure in every fold.

Where nnU-Net's own shuffle does as well, it is kept, since results are compared fold by fold.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.documents.splits import FOLDS, SEED, Split, kfold, splits_by
from autoseg.errors import AutosegError
from autoseg.rules.decision import Decision

Array = NDArray[np.float64]
Presence = Mapping[str, tuple[bool, ...]]
"""Case -> whether it shows each structure."""

SWAPPED = 400
"""Of each fold at most so many units are tried in exchange at a time."""
AS_WELL = 1
"""nnU-Net's shuffle is as good if no fold holds a structure in more cases more or fewer than that."""


@dataclass(frozen=True)
class Units:
    """What stays together (a patient's cases, or a case), in an order drawn by the seed.

    `sizes` (units,) counts cases, `holds` (units, structures) those that show a structure.
    """

    cases: tuple[tuple[str, ...], ...]
    sizes: Array
    holds: Array


def make_folds(
    presence: Presence,
    groups: Mapping[str, str] | None = None,
    *,
    folds: int = FOLDS,
    seed: int = SEED,
    structures: Sequence[str] = (),
) -> Decision[tuple[Split, ...]]:
    """The folds, and why these. No group is in two folds; sizes go before structures.

    Raises AutosegError if there is one group only. `structures` are names for the reason.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds: there must be two or more")
    ids = sorted(presence)
    of = {case: groups[case] for case in ids} if groups is not None else {c: c for c in ids}
    together = len(set(of.values()))
    if together == 1 and len(ids) > 1:
        raise AutosegError(
            f"all {len(ids)} cases belong to one group, {next(iter(of.values()))!r}, which cannot be "
            "both trained on and held out; split by another column, or without groups"
        )
    plain = kfold(ids, folds, seed)
    count = min(folds, together)
    few = f" Only {together} of {folds} folds, since there are no more {_kind(of)}."
    said = few if count < folds and len(ids) > 1 else ""
    whole = _whole(plain, of)
    if whole and len(set(presence.values())) <= 1:
        why = "nnU-Net's own shuffle: all cases show the same structures."
        return Decision(plain, why + said)
    units = _units(presence, of, seed)
    held_out = _polished(units, _stratified(units, count, seed), count)
    splits = splits_by(
        [
            [case for u in np.flatnonzero(held_out == fold) for case in units.cases[u]]
            for fold in range(count)
        ]
    )
    theirs, ours = _held(plain, presence), _held(splits, presence)
    if whole and _as_well(theirs, ours, len(ids)):
        why = "nnU-Net's own shuffle: it spreads every structure as evenly as stratifying would."
        return Decision(plain, why + said)
    return Decision(splits, _why(of, ours, theirs, structures) + said)


def _kind(of: Mapping[str, str]) -> str:
    return "groups" if len(set(of.values())) < len(of) else "cases"


def _whole(splits: Sequence[Split], of: Mapping[str, str]) -> bool:
    """Whether no group is held out in two folds."""
    seen = [{of[case] for case in split.validation} for split in splits]
    return sum(map(len, seen)) == len(set().union(*seen))


def _units(presence: Presence, of: Mapping[str, str], seed: int) -> Units:
    members: dict[str, list[str]] = {}
    for case in sorted(presence):
        members.setdefault(of[case], []).append(case)
    # in the order of their first cases: what the groups are called does not matter
    listed = list(members.values())
    order = np.random.RandomState(seed).permutation(len(listed))
    cases = tuple(tuple(listed[i]) for i in order)
    holds = [np.sum([presence[case] for case in unit], axis=0, dtype=float) for unit in cases]
    return Units(cases, np.array([len(unit) for unit in cases], float), np.array(holds))


def _stratified(units: Units, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each unit by iterative stratification, the rarest structure first.

    Sechidis, Tsoumakas & Vlahavas 2011 (doi 10.1007/978-3-642-23808-6_10), for units of several
    cases: those that hold the structure most often are placed first.
    """
    random = np.random.RandomState(seed)
    found = np.full(len(units.cases), -1)
    room = np.full(folds, units.sizes.sum() / folds)
    wanted = np.tile(units.holds.sum(0) / folds, (folds, 1))
    while (left := np.flatnonzero(found < 0)).size:
        counts = units.holds[left].sum(0)
        rarest = int(np.where(counts > 0, counts, np.inf).argmin()) if counts.any() else None
        weight = units.sizes if rarest is None else units.holds[:, rarest]
        for unit in left[np.argsort(-weight[left], kind="stable")]:
            if weight[unit] == 0:
                break
            needs = room if rarest is None else wanted[:, rarest]
            best = np.flatnonzero(needs >= needs.max() - 1e-9)
            best = best[room[best] >= room[best].max() - 1e-9]
            fold = best[random.randint(len(best))]
            found[unit] = fold
            room[fold] -= units.sizes[unit]
            wanted[fold] -= units.holds[unit]
    return found


def _polished(units: Units, found: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """The folds after units were moved and exchanged for as long as that makes them more equal.

    Equal are first the sizes, then the cases that show each structure: the squares of what a fold
    has too many or too few.
    """
    found = found.copy()
    # of two structures that could be evened out, the rarer one is
    weights = 1 + 1 / np.maximum(units.holds.sum(0), 1)
    changed = True
    while changed:
        changed = False
        for a in range(folds):
            for b in range(folds):
                if a != b:
                    changed |= _improved(units, weights, found, a, b)
    return found


def _improved(units: Units, weights: Array, found: NDArray[np.int64], a: int, b: int) -> bool:
    """Whether a unit went from fold `a` to `b`, or two changed places, for the better."""
    mine, others = np.flatnonzero(found == a), np.flatnonzero(found == b)
    if not len(mine):
        return False
    pairs = mine[:SWAPPED], np.append(others[:SWAPPED], -1)
    gaps = [units.sizes[others].sum() - units.sizes[mine].sum()]
    by_size = _change(units.sizes[:, None], np.array(gaps), pairs)
    gaps = units.holds[others].sum(0) - units.holds[mine].sum(0)
    by_structure = _change(units.holds * weights**0.5, gaps * weights**0.5, pairs)
    key = by_size * (1 + 2 * np.abs(by_structure).max()) + by_structure
    row, column = np.unravel_index(key.argmin(), key.shape)
    if by_size[row, column] > -0.5 and key[row, column] > -1e-6:
        return False
    given, taken = pairs[0][row], pairs[1][column]
    found[given] = b
    if taken >= 0:
        found[taken] = a
    return True


def _change(table: Array, gap: Array, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Array:
    """(units of one fold, units of the other): by how much the squares change, halved.

    Each first unit goes to the other fold and each second one, or nobody (the last), comes back.
    `gap` is what the other fold has more.
    """
    given, taken = table[pairs[0]], table[pairs[1]]
    taken[-1] = 0
    ahead = (given**2).sum(1) + given @ gap
    back = (taken**2).sum(1) - taken @ gap
    change: Array = ahead[:, None] + back[None] - 2 * given @ taken.T
    return change


def _held(splits: Sequence[Split], presence: Presence) -> NDArray[np.int64]:
    """(folds, structures): how many held-out cases show each structure."""
    rows = [
        np.sum([presence[case] for case in split.validation], axis=0, dtype=np.int64)
        for split in splits
    ]
    return np.array(rows)


def _as_well(theirs: NDArray[np.int64], ours: NDArray[np.int64], cases: int) -> bool:
    """Whether another way to split changes little: whatever it is that the folds are called."""
    if theirs.shape != ours.shape:
        return False
    apart = np.abs(np.sort(theirs, 0) - np.sort(ours, 0)).max(initial=0)
    # one case more or less is much where it is the only one
    lost = ((theirs.min(0) == 0) & (ours.min(0) > 0)).any()
    return bool(apart <= AS_WELL and not lost and cases > 1)


def _why(
    of: Mapping[str, str],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
    structures: Sequence[str],
) -> str:
    """How the folds were made, with the structure that gained the most."""
    sizes = Counter(of.values())
    kept = ""
    if len(sizes) < len(of):
        each = _range(np.array(list(sizes.values())))
        kept = f"{len(sizes)} groups of {each} cases each stay in one fold; "
    spread = np.ptp(theirs, 0) - np.ptp(ours, 0)
    if not spread.size or spread.max() <= 0:
        return f"{kept}the folds are stratified by the structures that a case shows."
    most = int(spread.argmax())
    name = structures[most] if most < len(structures) else f"structure {most + 1}"
    mine, shuffled = (_range(held[:, most]) for held in (ours, theirs))
    return (
        f"{kept}stratified by the structures that a case shows: each fold holds out {mine} cases "
        f"with {name}, where nnU-Net's shuffle would hold out {shuffled}."
    )


def _range(counts: NDArray[np.int64]) -> str:
    """`3`, or `2 to 4`."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class FoldRow:
    """One fold, as (held out, trained on): cases, groups, and cases that show each structure."""

    cases: tuple[int, int]
    groups: tuple[int, int] | None
    shows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FoldsReport:
    """What each fold holds, and what is odd about it."""

    structures: tuple[str, ...]
    folds: tuple[FoldRow, ...]
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Aligned text, a column a fold: cases held out / trained on."""
        rows = [["held out / trained on", *(f"fold {i}" for i in range(len(self.folds)))]]
        rows.append(["cases", *(_pair(row.cases) for row in self.folds)])
        if all(row.groups is not None for row in self.folds):
            rows.append(["groups", *(_pair(row.groups or (0, 0)) for row in self.folds)])
        for i, name in enumerate(self.structures):
            rows.append([name, *(_pair(row.shows[i]) for row in self.folds)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        told = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        return [*told, *(f"warning: {warning}" for warning in self.warnings)]


def _pair(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]} / {numbers[1]}"


def fold_report(
    splits: Sequence[Split],
    presence: Presence,
    structures: Sequence[str],
    groups: Mapping[str, str] | None = None,
) -> FoldsReport:
    """What each of any folds holds, and warnings: structures that lack, groups on both sides."""

    def seen(cases: Sequence[str]) -> int:
        return len({groups[case] for case in cases}) if groups is not None else 0

    def shown(cases: Sequence[str], i: int) -> int:
        return sum(presence[case][i] for case in cases)

    rows = tuple(
        FoldRow(
            (len(s.validation), len(s.train)),
            (seen(s.validation), seen(s.train)) if groups is not None else None,
            tuple((shown(s.validation, i), shown(s.train, i)) for i in range(len(structures))),
        )
        for s in splits
    )
    warnings = [*_lacking(rows, structures), *_mixed(splits, groups or {})]
    warnings += _uncovered(splits, presence)
    return FoldsReport(tuple(structures), rows, tuple(warnings))


def _lacking(rows: Sequence[FoldRow], structures: Sequence[str]) -> list[str]:
    """Structures that a fold cannot learn, or cannot be judged by."""
    found = []
    for i, name in enumerate(structures):
        total = max((sum(row.shows[i]) for row in rows), default=0)
        for side, doing in ((1, "trained on"), (0, "held out")):
            bare = [k for k, row in enumerate(rows) if row.shows[i][side] == 0]
            if bare and total:
                found.append(
                    f"{name} is in {total} case{'s' * (total > 1)}, none of them {doing} in "
                    f"{_named('fold', bare)}"
                )
    return found


def _mixed(splits: Sequence[Split], groups: Mapping[str, str]) -> list[str]:
    """Folds that hold out a group that they train on."""
    found = []
    for k, split in enumerate(splits):
        train = {groups[c] for c in split.train if c in groups}
        both = sorted({groups[c] for c in split.validation if c in groups} & train)
        if both:
            more = f" and {len(both) - 1} more groups" if len(both) > 1 else ""
            found.append(f"fold {k} trains on and holds out {both[0]!r}{more}")
    return found


def _uncovered(splits: Sequence[Split], presence: Presence) -> list[str]:
    """Cases that are held out never, or more than once."""
    times = Counter(case for split in splits for case in split.validation)
    never = [case for case in sorted(presence) if case not in times]
    often = sorted(case for case, n in times.items() if n > 1)
    return [
        f"{cases[0]}{f' and {len(cases) - 1} more cases' if len(cases) > 1 else ''} held out {said}"
        for cases, said in ((never, "in no fold"), (often, "in several folds"))
        if cases
    ]


def _named(what: str, numbers: Sequence[int]) -> str:
    """`fold 1`, `folds 1, 2 and 4`."""
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    return f"{what}s {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


PART = re.compile(r"[^_.\s-]+")
LEAST_PATIENTS, LEAST_REPEATED = 8, 0.2
"""Fewer common beginnings are sites rather than patients; so large a share of them is repeated."""


def scans_of_patients(cases: Sequence[str]) -> Decision[str | None]:
    """A pattern for the part of the ids that seems to be the patient, if patients seem to recur.

    That is a beginning that ends in a number and goes on (patient001_frame01), told from sites by
    how many there are.
    """
    parts = [PART.findall(case) for case in cases]
    for depth in range(1, max(map(len, parts), default=0)):
        heads = [tuple(p[:depth]) for p in parts]
        sizes = Counter(heads)
        repeated = [head for head, n in sizes.items() if n > 1]
        numbered = all(any(c.isdigit() for c in head[-1]) for head in repeated)
        many = len(sizes) >= LEAST_PATIENTS and len(repeated) >= LEAST_REPEATED * len(sizes)
        if many and numbered:
            both = [c for c, head in zip(cases, heads, strict=True) if head == repeated[0]][:2]
            before = rf"(?:[^_.\s-]+[_.\s-]+){{{depth - 1}}}" if depth > 1 else ""
            why = (
                f"{len(cases)} cases have {len(sizes)} beginnings between them, as {both[0]} and "
                f"{both[1]}, which look like scans of one patient"
            )
            return Decision(rf"^({before}[^_.\s-]+)", why)
    return Decision(None, "no beginning of the ids looks like a patient with several scans")
