"""A plan for a card starts on that card: every network, three cards, four kinds of data.

The suite draws one network of each family. All of them, `pytest -m slow tests/simulated`, take
hours of a core, most of it for planning; `-k` chooses networks: `-k "swin_unetr and brats"`.
"""

import pytest

from autoseg.documents.presets import (
    classic,
    hybrids,
    mamba,
    nnunet,
    published,
    transformers,
    words,
)
from autoseg.documents.presets.table import PRESETS
from tests.simulated.starting import CARDS_GB, DATASETS, planned, start

FAMILIES = (nnunet, mamba, transformers, classic, published, words, hybrids)
DRAWN = {
    "plain": 8, "umamba_bot": 24, "unetr": 80, "fcn8s": 8, "segresnet": 24, "se_unet": 80,
    "transunet": 8,
}  # fmt: skip
"""A network of each family, and the card that it is tried on."""
LONG = ("transunet",)
"""Planning takes half a minute of a core."""
FILLED = ("fcn8s", "segresnet")
"""Those that are asked to use the card's whole memory."""


def test_each_family_is_drawn() -> None:
    for family in FAMILIES:
        assert any(name in family.PRESETS for name in DRAWN), family.__name__
    assert sum(len(family.PRESETS) for family in FAMILIES) == len(PRESETS)
    assert set(DRAWN.values()) == set(CARDS_GB)


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in DRAWN]
)
def test_one_of_each_family_starts(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patch is pinned, so that little is searched; the batch is free and fills what it may."""
    memory_gb = DRAWN[network]
    plan = planned(
        monkeypatch, network, memory_gb, "pictures", use_memory=network in FILLED,
        **{"2d.patch_vox": [128, 128]},
    )  # fmt: skip
    found = start(plan.configuration("2d"), memory_gb)
    assert found.as_planned, found
    assert found.peak > 0.2 * 2**30


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan on a card a quarter as large: the simulation can say no."""
    plan = planned(
        monkeypatch, "plain", 8, "pictures",
        **{"2d.patch_vox": [128, 128], "2d.batch_size": 128},
    )  # fmt: skip
    assert "simulated card" in start(plan.configuration("2d"), 2).refused


@pytest.mark.slow
@pytest.mark.parametrize("memory_gb", CARDS_GB)
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("network", PRESETS)
def test_every_network_starts_on_every_card(
    network: str,
    dataset: str,
    memory_gb: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(monkeypatch, network, memory_gb, dataset)
    refused = []
    for name, c in plan.configurations.items():
        found = start(c, memory_gb)
        with capsys.disabled():
            print(
                f"\n{network:20} {dataset:12} {memory_gb:3} GB {name:20} "
                f"{'x'.join(map(str, c.patch_vox)):14} batch {c.train.batch_size:4} "
                f"{found.peak / 2**30:6.2f} of {found.planned / 2**30:6.2f} GiB {found.refused}",
                end="",
            )
        if not found.as_planned:
            refused.append((name, found))
    assert not refused
