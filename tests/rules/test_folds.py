"""Folds: no group in two of them, sizes and structures as even as can be, nnU-Net's where as good."""

import itertools
import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.documents.splits import Split, kfold, splits_by
from autoseg.errors import AutosegError
from autoseg.rules.folds import fold_report, make_folds, scans_of_patients

PRESENCE = st.integers(0, 3).flatmap(
    lambda classes: st.lists(st.tuples(*[st.booleans()] * classes), min_size=1, max_size=40)
)


def named(rows) -> dict[str, tuple[bool, ...]]:
    return {f"case_{i:03d}": tuple(row) for i, row in enumerate(rows)}


def random_presence(seed: int, cases: int, shares: tuple[float, ...]) -> dict:
    draws = np.random.default_rng(seed).random((cases, len(shares)))
    return named((draws < np.asarray(shares)).tolist())


def held(splits, presence) -> np.ndarray:
    """(folds, structures), counted naively."""
    return np.array(
        [[sum(col) for col in zip(*(presence[c] for c in s.validation))] for s in splits]
    )


def check_whole(splits, presence) -> None:
    """Every case is held out once, and trained on in all other folds."""
    assert sorted(c for s in splits for c in s.validation) == sorted(presence)
    for split in splits:
        assert sorted((*split.train, *split.validation)) == sorted(presence)
        assert split.validation == tuple(sorted(split.validation))


@given(PRESENCE, st.integers(2, 6))
@settings(max_examples=60)
def test_without_groups_sizes_are_equal_and_every_case_is_held_out_once(rows, folds) -> None:
    presence = named(rows)
    found = make_folds(presence, folds=folds).value
    if len(presence) == 1:
        assert found == kfold(list(presence))
        return
    check_whole(found, presence)
    sizes = [len(s.validation) for s in found]
    assert len(sizes) == min(folds, len(presence))
    assert max(sizes) - min(sizes) <= 1


@given(PRESENCE, st.integers(2, 6), st.data())
@settings(max_examples=80)
def test_no_group_is_in_two_folds(rows, folds, data) -> None:
    presence = named(rows)
    groups = {c: data.draw(st.sampled_from("abcdefghijkl"), label=c) for c in presence}
    names = set(groups.values())
    if len(names) == 1 and len(presence) > 1:
        with pytest.raises(AutosegError, match=r"one group, '\w'"):
            make_folds(presence, groups, folds=folds)
        return
    found = make_folds(presence, groups, folds=folds)
    if len(presence) == 1:
        return
    check_whole(found.value, presence)
    assert len(found.value) == min(folds, len(names))
    homes = {
        g: {k for k, s in enumerate(found.value) for c in s.validation if groups[c] == g}
        for g in names
    }
    assert all(len(home) == 1 for home in homes.values())
    # no group could go from the largest to the smallest fold and leave them more equal
    sizes = [len(s.validation) for s in found.value]
    largest = found.value[int(np.argmax(sizes))].validation
    smallest_group = min(
        sum(groups[c] == g for c in presence) for g in {groups[c] for c in largest}
    )
    assert max(sizes) - min(sizes) <= smallest_group
    assert min(sizes) > 0


@pytest.mark.parametrize("seed", range(12))
def test_sizes_are_as_equal_as_the_best_of_all_ways(seed: int) -> None:
    """Seven groups in three folds, against every one of the ways to share them out."""
    sizes = np.random.default_rng(seed).integers(1, 9, 7)
    groups = {f"c{g}{i}": f"g{g}" for g, n in enumerate(sizes) for i in range(n)}
    presence = dict.fromkeys(groups, (True,))
    found = make_folds(presence, groups, folds=3).value
    best = min(
        sum(sum(n for n, f in zip(sizes, way) if f == fold) ** 2 for fold in range(3))
        for way in itertools.product(range(3), repeat=7)
    )
    # exchanges of one for one find the optimum or end one case beside it
    assert sum(len(s.validation) ** 2 for s in found) <= best + 2


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_one_structure_is_spread_to_within_a_case(share: float, folds: int) -> None:
    for seed in range(4):
        presence = random_presence(seed, 43, (share,))
        counts = held(make_folds(presence, folds=folds).value, presence)[:, 0]
        total = counts.sum()
        if total >= folds:
            assert counts.min() >= 1
        shuffled = held(kfold(list(presence), folds), presence)[:, 0]
        assert np.ptp(counts) <= 1 or counts.tolist() == shuffled.tolist()
        assert (
            np.abs(
                np.sort(counts) - np.sort([len(p) for p in np.array_split(range(total), folds)])
            ).max()
            <= 1
        )


@pytest.mark.parametrize("seed", range(6))
def test_several_structures_are_spread_to_within_a_case_of_their_share(seed: int) -> None:
    presence = random_presence(seed, 100, (0.1, 0.3, 0.6, 0.9))
    counts = held(make_folds(presence).value, presence)
    assert np.abs(counts - counts.sum(0) / 5).max() <= 1
    shuffled = held(kfold(list(presence)), presence)
    assert (np.ptp(counts, 0) <= np.ptp(shuffled, 0)).all()


@pytest.mark.parametrize("seed", range(6))
def test_structures_are_spread_over_groups_of_several_cases(seed: int) -> None:
    presence = random_presence(seed, 120, (0.15, 0.5))
    rng = np.random.default_rng(seed)
    groups = {case: f"p{rng.integers(45)}" for case in presence}
    splits = make_folds(presence, groups).value
    counts = held(splits, presence)
    assert [len(s.validation) for s in splits] == [24] * 5
    assert np.abs(counts - counts.sum(0) / 5).max() < 2


def test_a_rare_structure_is_in_every_fold() -> None:
    """Five of a hundred: nnU-Net's shuffle leaves it out of folds, though by one case only."""
    lost = 0
    for seed in range(8):
        chosen = set(np.random.default_rng(seed).choice(100, 5, replace=False).tolist())
        presence = named([(i in chosen, True) for i in range(100)])
        assert held(make_folds(presence).value, presence)[:, 0].tolist() == [1] * 5
        lost += 0 in held(kfold(list(presence)), presence)[:, 0]
    assert lost >= 6


def test_what_lacks_in_few_cases_is_spread_as_what_is_in_few() -> None:
    """80 of 100 show it: the shuffle is off by more than one case, stratifying is exact."""
    presence = named([(i % 10 not in (3, 4),) for i in range(100)])
    assert np.ptp(held(kfold(list(presence)), presence)[:, 0]) > 2
    assert held(make_folds(presence).value, presence)[:, 0].tolist() == [16] * 5


@pytest.mark.parametrize("cases", [2, 4, 5, 23, 260])
def test_where_all_show_the_same_the_folds_are_nnunets(cases: int) -> None:
    presence = named([(True, False, True)] * cases)
    for groups in (None, {c: f"patient of {c}" for c in presence}):
        found = make_folds(presence, groups)
        assert found.value == kfold(list(presence))
        assert "nnU-Net's own shuffle" in found.why


def test_where_the_shuffle_is_as_even_the_folds_are_nnunets() -> None:
    cases = [f"case_{i:03d}" for i in range(50)]
    plain = kfold(cases)
    even = dict.fromkeys(cases, (False,)) | {c: (True,) for s in plain for c in s.validation[:3]}
    kept = make_folds(even)
    assert kept.value == plain
    assert "as evenly" in kept.why
    # one case more or less in a fold changes nothing, two do
    near = even | {plain[0].validation[3]: (True,), plain[1].validation[2]: (False,)}
    assert make_folds(near).value == plain
    far = near | {plain[0].validation[4]: (True,), plain[1].validation[1]: (False,)}
    assert make_folds(far).value != plain
    assert held(make_folds(far).value, far)[:, 0].tolist() == [3] * 5


@pytest.mark.parametrize("turn", range(5))
def test_which_fold_has_one_more_does_not_matter(turn: int) -> None:
    """2, 4, 4, 4 and 3 cases, in any order, are as good as 3, 3, 3, 4 and 4."""
    cases = [f"case_{i:03d}" for i in range(50)]
    plain = kfold(cases)
    counts = np.roll([2, 4, 4, 4, 3], turn)
    shows = {c for s, n in zip(plain, counts, strict=True) for c in s.validation[:n]}
    assert make_folds({c: (c in shows,) for c in cases}).value == plain


def test_the_order_of_the_cases_does_not_matter() -> None:
    presence = random_presence(3, 60, (0.2, 0.7))
    groups = {case: case[:-1] for case in presence}
    backwards = dict(reversed(presence.items()))
    for known in (None, groups):
        assert make_folds(presence, known) == make_folds(backwards, known)
        assert make_folds(presence, known, seed=1).value != make_folds(presence, known).value


def test_what_the_groups_are_called_does_not_matter() -> None:
    presence = random_presence(5, 60, (0.2, 0.7))
    groups = {case: case[:-1] for case in presence}
    renamed = {case: group[::-1] for case, group in groups.items()}
    assert make_folds(presence, groups) == make_folds(presence, renamed)


def test_reasons_hold_numbers() -> None:
    presence = random_presence(0, 100, (0.5, 0.5))
    groups = {case: f"p{int(case[-3:]) // 4}" for case in presence}
    found = make_folds(presence, groups, structures=("liver", "tumour"))
    assert "25 groups of 4 cases each" in found.why
    best = re.search(r"holds out (\d+)(?: to (\d+))? cases with (liver|tumour)", found.why)
    assert best is not None
    column = ("liver", "tumour").index(best[3])
    counts = held(found.value, presence)[:, column]
    assert (int(best[1]), int(best[2] or best[1])) == (counts.min(), counts.max())


def test_fewer_groups_than_folds_make_fewer_folds() -> None:
    presence = named([(True,)] * 9)
    groups = {case: "aaabbbccc"[i] for i, case in enumerate(presence)}
    found = make_folds(presence, groups)
    assert [len(s.validation) for s in found.value] == [3, 3, 3]
    assert "Only 3 of 5 folds" in found.why
    assert "Only 3 of 5 folds" in make_folds(named([(True,)] * 3)).why
    with pytest.raises(ValueError, match="1 folds"):
        make_folds(presence, folds=1)


def test_the_report_counts_what_a_fold_holds() -> None:
    presence = {"a1": (True, False), "a2": (True, True), "b1": (False, False), "c1": (True, False)}
    groups = {case: case[0] for case in presence}
    found = fold_report(
        splits_by([["a1", "a2"], ["b1", "c1"]]), presence, ("liver", "cyst"), groups
    )
    first, second = found.folds
    assert (first.cases, first.groups, first.shows) == ((2, 2), (1, 2), ((2, 1), (1, 0)))
    assert (second.cases, second.groups, second.shows) == ((2, 2), (2, 1), ((1, 2), (0, 1)))
    assert found.warnings == (
        "cyst is in 1 case, none of them trained on in fold 0",
        "cyst is in 1 case, none of them held out in fold 1",
    )
    lines = found.lines()
    assert lines[0].split() == ["held", "out", "/", "trained", "on", "fold", "0", "fold", "1"]
    assert lines[2].split() == ["groups", "1", "/", "2", "2", "/", "1"]
    assert lines[4].split() == ["cyst", "1", "/", "0", "0", "/", "1"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert json.loads(json.dumps(asdict(found)))["folds"][0]["shows"] == [[2, 1], [1, 0]]


def test_the_report_warns_of_patients_on_both_sides_and_of_cases_never_held_out() -> None:
    presence = dict.fromkeys(("a1", "a2", "b1", "c1"), (True,))
    groups = {case: case[0] for case in presence}
    splits = (Split(("a1", "b1"), ("a2",)), Split(("a1", "c1"), ("a2", "b1")))
    found = fold_report(splits, presence, ("liver",), groups)
    assert found.warnings == (
        "fold 0 trains on and holds out 'a'",
        "fold 1 trains on and holds out 'a'",
        "a1 and 1 more cases held out in no fold",
        "a2 held out in several folds",
    )
    assert (
        fold_report(splits_by([["a1", "a2"], ["b1", "c1"]]), presence, ("liver",), groups).warnings
        == ()
    )


def test_our_own_folds_are_reported_without_a_warning() -> None:
    presence = random_presence(1, 80, (0.3, 0.8))
    groups = {case: case[:-1] for case in presence}
    for known in (None, groups):
        splits = make_folds(presence, known).value
        assert fold_report(splits, presence, ("a", "b"), known).warnings == ()


SEVERAL = {
    "frames": [f"patient{p:03d}_frame{f:02d}" for p in range(1, 21) for f in (1, 12)],
    "timepoints": [f"BraTS-GLI-{p:05d}-{t:03d}" for p in range(30) for t in range(p % 3 + 1)],
    "nodules": [f"LIDC_{p:04d}_R_{n}" for p in range(40) for n in range(p % 2 + 1)],
    "slices": [f"case12_{p:02d}.slice{n}" for p in range(9) for n in range(30)],
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SEVERAL))
def test_scans_of_one_patient_are_suspected_and_the_pattern_finds_the_patients(kind: str) -> None:
    ids = SEVERAL[kind]
    found = scans_of_patients(ids)
    assert found.value is not None
    pattern = re.compile(found.value)
    patients = {i: pattern.search(i)[1] for i in ids}
    heads = {i: re.sub(r"[-_.][a-zR_]*\d+$", "", i) for i in ids}
    assert patients == heads
    assert f"{len(ids)} cases have {len(set(heads.values()))} beginnings" in found.why


@pytest.mark.parametrize(
    "ids",
    [
        [f"hippocampus_{n:03d}" for n in range(260)],
        [f"LIDC_{n:04d}_R_{n % 3}" for n in range(80)],
        ["00ae65c1c663", "0121d6759c5a", "01d44a26f668"] * 10,
        [f"TCGA_{['CS', 'HT', 'DU', 'EZ', 'FG'][n % 5]}_{4941 + n}_1996{n:04d}" for n in range(24)],
        [f"BRATS_{n:03d}" for n in range(484)],
        [f"KiTS23_{n:05d}" for n in range(100)],
        [f"site{n % 4}_{n:03d}" for n in range(60)],
        [f"s{n:04d}" for n in range(60)],
        [f"{c}_{n}" for c in "abcdefghijkl" for n in range(4)],
        ["patient001_a", "patient001_b", "patient002"],
        [],
    ],
)  # fmt: skip
def test_other_ids_raise_no_suspicion(ids: list[str]) -> None:
    assert scans_of_patients(ids).value is None
