"""The order of artefacts: complete, without a circle, and what a cascade waits for."""

from types import SimpleNamespace

import pytest

from autoseg.flow.order import Artefact, Scope, needs, ordered

PLAN = SimpleNamespace(
    configuration=lambda name: SimpleNamespace(
        previous=SimpleNamespace(configuration="3d_lowres") if "cascade" in name else None
    )
)


def scope(*configurations: str, folds: tuple[str, ...] = ("0", "1")) -> Scope:
    return Scope(PLAN, configurations, folds)


@pytest.mark.parametrize(
    "configurations",
    [("2d",), ("2d", "3d_fullres"), ("3d_cascade_fullres",), ("3d_lowres", "3d_cascade_fullres")],
)
def test_everything_comes_once_and_after_what_it_needs(configurations) -> None:
    where = scope(*configurations)
    order = ordered(Artefact("package"), where)
    assert len(set(order)) == len(order)
    for place, what in enumerate(order):
        assert set(needs(what, where)) <= set(order[:place])
    assert order[-1] == Artefact("package")


def test_a_cascade_waits_for_the_validation_of_every_fold_before() -> None:
    order = ordered(Artefact("fold", "3d_cascade_fullres", "1"), scope("3d_cascade_fullres"))
    titles = [what.title for what in order]
    assert titles == [
        "fingerprint",
        "plan",
        "prepared of 3d_cascade_fullres",
        "prepared of 3d_lowres",
        "fold 0 of 3d_lowres",
        "validation 0 of 3d_lowres",
        "fold 1 of 3d_lowres",
        "validation 1 of 3d_lowres",
        "previous of 3d_cascade_fullres",
        "fold 1 of 3d_cascade_fullres",
    ]
