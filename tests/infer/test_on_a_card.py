"""A volume on a simulated card: the same answer within any memory that holds one tile, or a reason."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.documents.plan import Prediction
from autoseg.infer import together
from autoseg.infer.exact import exact_products
from autoseg.infer.meaning import Slab
from autoseg.infer.restore import classes_on, restored
from autoseg.infer.rows import Mixing
from autoseg.infer.together import NoRoom, Together
from autoseg.infer.volume import logit_slabs
from autoseg.infer.winners import Winners
from tests.card import FULL, card, simulated

PATCH = (8, 16, 16)
SHAPE = (12, 20, 24)


def network() -> Any:
    """A convolution whose intermediate maps take much more than its input."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 32, 1), torch.nn.Tanh(), torch.nn.Conv3d(32, 3, 3, padding=1)
    )

    def speak(batch: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return [net(batch)]

    return speak


def image() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, *SHAPE)).astype(np.float32)


def logits(net: Any, pace: Together) -> np.ndarray:
    slabs = logit_slabs([net], image(), PATCH, 3, Prediction(), (0, 2), together=pace)
    return np.concatenate([slab.numpy() for _, slab in slabs], axis=1)


@pytest.fixture
def peak_of_one(monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes of the whole way where one sample at a time goes through the network."""
    net = network()
    with monkeypatch.context() as patch, simulated(patch, card(8), limit=1 << 40) as cards:
        patch.setattr(together, "CARD_MOST", 1)
        patch.setattr(together, "CARD_VOXELS", 1)
        patch.setattr(together, "CARD_SHARE", 0.0)
        cards.memory.restart()
        logits(net, Together("cpu"))
        return int(cards.memory.peak)


def test_a_card_that_holds_one_tile_gives_the_same_answer(
    peak_of_one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    want = logits(net, Together("cpu"))
    # the card says that 8 GiB are free, and so is asked for too much
    with simulated(monkeypatch, card(8), limit=int(1.1 * peak_of_one)) as cards:
        pace = Together("cpu")
        found = logits(net, pace)
        assert cards.memory.refused > 0 and pace.size((1, *PATCH)) < 4
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_a_card_that_holds_no_tile_says_so(
    peak_of_one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    with (
        simulated(monkeypatch, card(8), limit=peak_of_one // 2),
        pytest.raises(NoRoom, match=r"no room for one patch of 8 x 16 x 16 .*GiB.*--device cpu"),
    ):
        logits(net, Together("cpu"))


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_batch_that_does_not_fit_beside_the_sums_is_halved(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the network but what is stacked before it runs out of memory."""
    real, sizes = torch.stack, []

    def stack(tensors: list[Tensor], *rest: int) -> Tensor:
        sizes.append(len(tensors))
        if len(tensors) > 2:
            raise error
        return real(tensors, *rest)

    net, prediction = network(), Prediction(tile_batch=8)
    want = [s.clone() for _, s in logit_slabs([net], image(), PATCH, 3, prediction)]
    monkeypatch.setattr(torch, "stack", stack)
    found = [s for _, s in logit_slabs([net], image(), PATCH, 3, prediction)]
    assert max(sizes) == 8 and sizes[:4] == [8, 8, 4, 2]
    torch.testing.assert_close(torch.cat(found, 1), torch.cat(want, 1), atol=2e-6, rtol=0)


# ---- back to the grid of the scan

REGIONS = parse_labels(
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, order=[1, 2, 3]
)
PLAIN = LabelSet(names=tuple("abcd"), values=(0, 1, 2, 3))
GRIDS: dict[str, Any] = {
    "shape_vox": (9, 11, 10), "box": [(1, 15), (0, 20), (2, 21)], "full_shape": (17, 20, 23),
    "spacing_mm": (1.5, 1.8, 1.9), "full_spacing_mm": (1.0, 1.0, 1.0),
}  # fmt: skip
VALUES = torch.from_numpy(np.random.default_rng(2).standard_normal((4, 9, 11, 10))).float()


def slabs(values: Tensor = VALUES) -> Iterator[Slab]:
    for start in range(0, 9, 2):
        rows = slice(start, min(9, start + 2))
        yield rows, values[:, rows].clone()


def on_grid(labels: LabelSet, values: Tensor = VALUES) -> np.ndarray:
    return classes_on(slabs(values), *GRIDS.values(), labels=labels)


def test_a_card_finds_the_same_classes_to_the_last_voxel(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = (VALUES * 2).round() / 2  # many are equal
    for labels in (PLAIN, REGIONS):
        for values in (VALUES, coarse):
            some = values[: labels.outputs]
            want = on_grid(labels, some)
            with simulated(monkeypatch, card(8)):
                np.testing.assert_array_equal(on_grid(labels, some), want)


@pytest.mark.parametrize("row", [0, 5, 13])
def test_a_card_whose_memory_ends_leaves_the_rest_to_the_processor(
    row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = on_grid(PLAIN)
    full = list(restored(slabs(), *GRIDS.values(), rows=4, outside=(0.0,) * 4))
    run_out(monkeypatch, Winners, "row", row)
    np.testing.assert_array_equal(on_grid(PLAIN), want)
    run_out(monkeypatch, Mixing, "plane", row)
    again = list(restored(slabs(), *GRIDS.values(), rows=4, outside=(0.0,) * 4))
    for (at, one), (there, other) in zip(full, again, strict=True):
        assert at == there
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_a_second_time_there_is_no_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, Winners, "row", 2, times=2)
    with pytest.raises(NoRoom, match="to the grid of the scan"):
        on_grid(PLAIN)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_winners_go_on_in_main_memory_however_a_full_card_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = on_grid(PLAIN)
    run_out(monkeypatch, Winners, "row", 2, error=error)
    np.testing.assert_array_equal(on_grid(PLAIN), want)


def test_another_error_of_a_card_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, Winners, "row", 2, error=RuntimeError("CUDA error: illegal address"))
    with pytest.raises(RuntimeError, match="illegal address"):
        on_grid(PLAIN)


def run_out(
    patch: pytest.MonkeyPatch,
    what: type[Any],
    name: str,
    call: int,
    times: int = 1,
    error: Exception = FULL[0],
) -> None:
    """The memory of the card ends at a call of a function, so many times."""
    real, calls = getattr(what, name), iter(range(1000))

    def limited(self: Any, *given: Any) -> Any:
        if call <= next(calls) < call + times:
            raise error
        return real(self, *given)

    patch.setattr(what, name, limited)


def test_products_are_exact_until_the_last_thread_leaves() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exact_products(torch.device("cuda")):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    try:
        with exact_products(torch.device("cuda")):
            thread.start()
            entered.wait(10)
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        thread.join(10)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
