"""The pure parts of the bench of networks: twins of as many parameters, intervals, its table."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from autoseg.documents.presets.table import PRESETS
from bench import mechanisms
from bench.mechanisms import Paired, contenders, paired, parameters_of, tables, twin_widths
from bench.networks import LAPTOP, PUBLISHED
from tests.nets.contract import part, sentence

MACHINE = {"date": "2026-01-01", "cores": "2", "processor": "P", "python": "3"}


def weights(widths):
    """A chain of 3x3x3 convolutions, counted."""
    return sum(27 * a * b for a, b in zip((1, *widths), widths, strict=False))


@pytest.mark.parametrize("target", [300, 12_345, 1_000_000, 27_000_000])
def test_no_factor_makes_a_nearer_twin(target):
    base = (8, 16, 32, 64)
    found = twin_widths(weights, base, target)
    factors = np.linspace(0, 40, 40_001)
    every = {tuple(max(1, round(width * f)) for width in base) for f in factors}
    nearest = min(abs(weights(widths) - target) for widths in every)
    assert abs(weights(found) - target) == nearest


def test_a_twin_of_itself_is_itself():
    assert twin_widths(weights, (8, 16, 32), weights((8, 16, 32))) == (8, 16, 32)


def test_contenders_have_as_many_parameters():
    preset, twin = contenders("resenc_m", sentence(3, part("plain"), widths=(8, 16, 32)))
    assert preset.spec.preset == "resenc_m" and twin.spec.preset == "plain"
    assert parameters_of(twin.spec) == twin.parameters
    assert abs(twin.parameters / preset.parameters - 1) < 0.03
    assert preset.spec.strides == twin.spec.strides


def test_the_interval_is_scipys_percentile_bootstrap():
    differences = np.random.default_rng(5).normal(0.01, 0.05, (3, 40))
    found = paired(differences)
    cases = [sum(column) / 3 for column in zip(*differences.tolist(), strict=True)]
    other = bootstrap(
        (cases,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(sum(cases) / 40)
    assert found.by_seed == pytest.approx([sum(row) / 40 for row in differences.tolist()])
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=5e-4)


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (Paired(0.02, 0.01, 0.03, (0.03, 0.01, 0.03)), "better"),
        (Paired(0.02, 0.01, 0.03, (0.05, -0.01, 0.05)), "no difference shown"),
        (Paired(0.02, 0.01, 0.03, (0.03, 0.01)), "too few seeds to tell"),
        (Paired(0.02, -0.01, 0.05, (0.03, 0.01, 0.03)), "no difference shown"),
        (Paired(-0.02, -0.03, -0.01, (-0.03, -0.01, -0.03)), "worse"),
        (Paired(-0.02, -0.03, -0.01, (-0.05, 0.01, -0.05)), "no difference shown"),
    ],
)
def test_an_order_needs_the_interval_and_every_seed(result, shown):
    assert result.shown == shown


def line(network, seed, dice, **rest):
    return {
        "set": "D", "network": network, "parameters": 1000, "width": 8, "budget": "5 steps",
        "seed": seed, "steps": 5, "train_s": 7.0, "dice": dice, "machine": MACHINE, **rest,
    }  # fmt: skip


def test_the_table_pairs_what_both_have():
    kept = [
        line("a", 0, {"x": 0.9, "y": 0.8, "z": None}, twin="t"),
        line("t", 0, {"x": 0.7, "y": 0.6, "z": 0.5}),
        line("a", 1, {"x": 0.0, "y": 0.0, "z": 0.0}, twin="t"),
        {**line("b", 0, {}, twin="t"), "failed": "the loss is nan"},
    ]
    text = "\n".join(tables(kept))
    # the undefined case and the seed without a twin are left out
    assert (
        "| 0.8500 (0.6500) | +0.2000 [+0.2000, +0.2000] | +0.2000 | too few seeds to tell |" in text
    )
    assert "| b | 1,000 (t) | | | | | | 1 runs failed |" in text
    assert "D, 5 steps, first width 8" in text


@pytest.mark.parametrize("size", [*LAPTOP.values(), PUBLISHED], ids=lambda size: size.name)
def test_every_preset_stands_on_the_measured_patches(size):
    for preset in PRESETS:
        spec = size.spec(preset)
        assert spec.preset == preset and spec.dimensions == len(size.patch_vox)
        assert not any(n % by for n, by in zip(size.patch_vox, spec.divisor, strict=True)), preset


def test_the_compared_networks_exist():
    assert set(mechanisms.PRESETS) <= set(PRESETS)
