"""Predicted memory against a card's allocator. Run with `pytest -m gpu tests/gpu` where there is one."""

import pytest
import torch

from bench.memory import alone, job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no card"),
]

FEATURES = (32, 64, 128, 256, 320)
CASES = [
    ("plain", (128, 128, 64)),
    ("plain", (512, 512)),
    ("resenc_l", (96, 96, 96)),
    ("swin_unetr", (64, 64, 64)),
    ("umamba_bot", (64, 64, 64)),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("preset", "patch"), CASES)
def test_allocated_less_workspace_is_as_predicted(preset, patch, precision):
    """`tensors` is the profiled peak without what convolutions allocate for themselves."""
    (row,) = alone([job(preset, patch, FEATURES, device="cuda", precision=precision)])
    assert row["predicted"] == pytest.approx(row["tensors"], rel=0.08)
    # the allocator's own peak is that of tensors and workspace, so the profile missed nothing
    assert row["allocated"] == pytest.approx(row["all"], rel=0.02)


def test_reserved_and_context_stay_within_the_planners_rule():
    """A step whose tensors fill 0.9 x target - 1.5 GB fits into the target."""
    (row,) = alone([job("plain", (128, 128, 128), FEATURES, device="cuda", precision="bfloat16")])
    target = (row["predicted"] + 1.5e9) / 0.9
    assert row["reserved"] + row["context"] <= target
