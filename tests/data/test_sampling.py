from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from autoseg.data.sampling import box_of, draw_batch, forced_samples, generator, lower_around
from autoseg.documents.plan import Sampling


@dataclass
class FakeCase:
    shape: tuple[int, int, int]
    places: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)

    @property
    def classes_present(self):
        return tuple(sorted(self.places))

    def count_of(self, index):
        return len(self.places.get(index, []))

    def place_of(self, index, number):
        return self.places[index][number]


CASES = [
    FakeCase((30, 40, 50), {1: [(2, 3, 4), (29, 39, 49)], 2: [(15, 20, 25)]}),
    FakeCase((6, 60, 20), {2: [(0, 59, 19)]}),
    FakeCase((10, 10, 10)),
]
THIRD = Sampling(foreground_share=1 / 3, class_weights=(0.5, 0.5), class_first=False)


@pytest.mark.parametrize(("size", "expected"), [(2, 1), (9, 3), (3, 1), (12, 4), (366, 122)])
def test_a_third_of_a_batch_is_forced_as_nnunet_forces_it(size, expected):
    assert forced_samples(size, 1 / 3) == expected


def test_the_last_samples_of_a_batch_are_forced():
    draws = draw_batch(CASES[:2], (8, 8, 8), 9, THIRD, seed=1, step=0)
    assert [d.forced is not None for d in draws] == [False] * 6 + [True] * 3


def test_a_batch_of_one_is_forced_by_chance():
    draws = [draw_batch(CASES[:2], (8, 8, 8), 1, THIRD, 5, step)[0] for step in range(600)]
    share = np.mean([d.forced is not None for d in draws])
    assert abs(share - 1 / 3) < 0.06  # three standard deviations


def test_draws_depend_on_seed_and_step_alone():
    first = draw_batch(CASES, (8, 16, 8), 4, THIRD, seed=3, step=7)
    draw_batch(CASES, (8, 16, 8), 4, THIRD, seed=3, step=8)
    assert draw_batch(CASES, (8, 16, 8), 4, THIRD, seed=3, step=7) == first
    assert draw_batch(CASES, (8, 16, 8), 4, THIRD, seed=4, step=7) != first
    assert draw_batch(CASES, (8, 16, 8), 4, THIRD, seed=3, step=8) != first
    assert draw_batch(CASES, (8, 16, 8), 2, THIRD, seed=3, step=7)[0] == first[0]


def test_cases_are_drawn_uniformly():
    counts = Counter(
        d.case for s in range(100) for d in draw_batch(CASES, (8, 8, 8), 9, THIRD, 2, s)
    )
    assert all(abs(counts[c] - 300) < 60 for c in range(3))


@pytest.mark.parametrize("patch", [(8, 16, 8), (40, 16, 30), (16, 12)])
def test_patches_stay_in_the_case_where_they_fit_and_enclose_it_where_not(patch):
    box = box_of(patch)
    for step in range(60):
        for d in draw_batch(CASES, patch, 3, THIRD, 11, step):
            for low, n, extent in zip(d.lower, box, CASES[d.case].shape, strict=True):
                if n <= extent:
                    assert 0 <= low <= extent - n
                else:
                    assert low == -((n - extent) // 2)


def test_random_patches_reach_every_place():
    whole = [FakeCase((5, 6, 4))]
    none = Sampling(foreground_share=0, class_weights=(1.0,), class_first=False)
    seen = {draw_batch(whole, (4, 4, 4), 2, none, 0, s)[0].lower for s in range(200)}
    assert seen == {(z, y, 0) for z in range(2) for y in range(3)}


@pytest.mark.parametrize("patch", [(8, 16, 8), (16, 12), (7, 9, 11)])
def test_forced_patches_show_a_voxel_of_their_class(patch):
    every = Sampling(foreground_share=1, class_weights=(0.5, 0.5), class_first=False)
    for step in range(60):
        for d in draw_batch(CASES[:2], patch, 2, every, 4, step):
            shown = [
                all(
                    low <= v < low + n
                    for v, low, n in zip(place, d.lower, box_of(patch), strict=True)
                )
                for place in CASES[d.case].places[d.forced]
            ]
            assert any(shown)


def test_the_voxel_lies_anywhere_in_the_central_half():
    rng, wide = generator(0, 1), [(-1000, 1000)] * 3
    lowers = np.array([lower_around((50, 50, 50), (16, 9, 1), wide, rng) for _ in range(500)])
    within = 50 - lowers
    assert (within.min(0), within.max(0)) == (
        pytest.approx([4, 2, 0]),
        pytest.approx([12, 6, 0]),
    )


def test_class_weights_count_among_the_classes_present():
    every = Sampling(foreground_share=1, class_weights=(0.25, 0.75), class_first=False)
    both = [FakeCase((20, 20, 20), {1: [(5, 5, 5)], 2: [(9, 9, 9)]})]
    forced = [draw_batch(both, (8, 8, 8), 2, every, 6, s)[0].forced for s in range(400)]
    assert abs(np.mean([f == 2 for f in forced]) - 0.75) < 0.07
    only_two = draw_batch(CASES[1:2], (8, 8, 8), 4, every, 6, 0)
    assert {d.forced for d in only_two} == {2}


def test_classes_of_no_weight_are_drawn_only_if_nothing_else_is_there():
    no_two = Sampling(foreground_share=1, class_weights=(1.0, 0.0), class_first=False)
    assert {d.forced for d in draw_batch(CASES[:1], (8, 8, 8), 30, no_two, 0, 0)} == {1}
    assert {d.forced for d in draw_batch(CASES[1:2], (8, 8, 8), 5, no_two, 0, 0)} == {2}
    none = Sampling(foreground_share=1, class_weights=(0.0, 0.0), class_first=False)
    assert {d.forced for d in draw_batch(CASES[:1], (8, 8, 8), 30, none, 0, 0)} == {1, 2}


def test_a_case_without_foreground_gives_patches_anywhere():
    every = Sampling(foreground_share=1, class_weights=(0.5, 0.5), class_first=False)
    assert {d.forced for d in draw_batch(CASES[2:], (4, 4, 4), 6, every, 0, 0)} == {None}


class Listed(list):
    """Cases with what the draw of a class first needs."""

    @property
    def holders(self):
        classes = sorted({c for case in self for c in case.classes_present})
        return {c: [i for i, case in enumerate(self) if c in case.classes_present] for c in classes}


def shares(cases, sampling, steps=4000, batch=2):
    """Class (None: anywhere) -> its share of all samples."""
    counts = Counter(
        d.forced for s in range(steps) for d in draw_batch(cases, (8, 8, 8), batch, sampling, 3, s)
    )
    return {forced: n / (steps * batch) for forced, n in counts.items()}


def organ_and_lesion(cases=100, every=20):
    """The organ in all cases, the lesion in one of `every`."""
    rare = {1: [(5, 5, 5)], 2: [(9, 9, 9)]}
    return Listed(
        FakeCase((20, 20, 20), rare if i % every == 0 else {1: [(5, 5, 5)]}) for i in range(cases)
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("share", [0.34, 0.5, 0.74])
def test_classes_are_shown_as_often_as_the_plan_says(share, batch):
    """A lesion in 5 % of the cases, drawn four times as often as the organ, and any share in any batch."""
    sampling = Sampling(foreground_share=share, class_weights=(0.2, 0.8), class_first=True)
    found = shares(organ_and_lesion(), sampling, 8000 // batch, batch)
    # three standard deviations of 8000 samples
    assert found[2] == pytest.approx(0.8 * share, abs=0.017)
    assert found[1] == pytest.approx(0.2 * share, abs=0.017)
    assert found[None] == pytest.approx(1 - share, abs=0.017)


def test_cases_without_structures_do_not_lessen_the_share():
    cases = Listed(
        FakeCase((20, 20, 20), {1: [(5, 5, 5)]} if i % 4 == 0 else {}) for i in range(40)
    )
    found = shares(cases, Sampling(foreground_share=0.6, class_weights=(1.0,), class_first=True))
    assert found[1] == pytest.approx(0.6, abs=0.017)
    none = Listed(FakeCase((20, 20, 20)) for _ in range(3))
    assert shares(none, THIRD.model_copy(update={"class_first": True}), 50) == {None: 1.0}


def test_a_class_is_drawn_only_in_cases_that_hold_it_and_alike_in_each():
    sampling = Sampling(foreground_share=1.0, class_weights=(0.0, 1.0), class_first=True)
    cases = organ_and_lesion(100, 25)
    drawn = [d for s in range(500) for d in draw_batch(cases, (8, 8, 8), 2, sampling, 1, s)]
    counts = Counter(d.case for d in drawn)
    assert set(counts) == {0, 25, 50, 75} and all(d.forced == 2 for d in drawn)
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_a_fold_without_a_class_shows_the_others():
    sampling = Sampling(foreground_share=1.0, class_weights=(0.1, 0.9), class_first=True)
    cases = Listed(FakeCase((20, 20, 20), {1: [(5, 5, 5)]}) for _ in range(5))
    assert shares(cases, sampling, 50) == {1: 1.0}


def test_what_was_trained_before_the_class_came_first_keeps_its_stamp():
    new = Sampling(foreground_share=0.5, class_weights=(1.0,))
    assert new.class_first and "class_first" not in new.dump()
    assert THIRD.dump()["class_first"] is False and Sampling.parse(THIRD.dump(), "x") == THIRD
