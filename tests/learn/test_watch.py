"""What goes wrong between two readings of a card: told as divergence, and never saved over a good state."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autoseg.documents.plan import Training
from autoseg.documents.run import lines
from autoseg.errors import TrainingDiverged
from autoseg.learn.loop import CHECK_EVERY_ON_CARD, advance
from autoseg.learn.losses import dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.pace import Pace
from autoseg.learn.scaling import LEAST_SCALE, scale_losses
from autoseg.learn.state import Run, load_state
from autoseg.learn.variants import Variant
from autoseg.learn.watch import Clock, Watch
from autoseg.workspace import Fold
from tests.card import TURING, card, simulated

Change = Callable[[Run], None]


class Bar:
    """A progress bar that shows nothing."""

    n, total = 0, 0

    def update(self, steps: int) -> None:
        self.n += steps

    def set_postfix(self, **shown: object) -> None: ...


class Case:
    """A run of a 1 x 1 convolution, watched, whose gradients can be spoilt at chosen steps."""

    def __init__(self, folder: Path, *, save_every_s: float = 1e9, validate_every: int = 1000):
        self.train = Training(
            steps=200, batch_size=2, supervision=(1.0,), save_every_s=save_every_s,
            validate_every=validate_every,
        )  # fmt: skip
        self.fold = Fold(folder / "fold_0")
        self.fold.folder.mkdir()
        torch.manual_seed(0)
        self.net = nn.Conv2d(1, 2, 1)
        self.run = Run(self.net, optimiser(self.train, self.net))
        self.watch = Watch(
            self.fold, self.train, Clock(time.monotonic()), Pace(200), lambda: 0.5, Bar(),
            threading.Event(),
        )  # fmt: skip

    def spoil_gradients(self, when: Callable[[int], bool]) -> None:
        self.net.weight.register_hook(lambda g: g * torch.inf if when(self.run.step) else g)

    def go(self, stop: int, *, nan_at: int = -1, after: Change | None = None) -> None:
        def batches():
            for step in range(stop):
                image = torch.full((2, 1, 4, 4), torch.nan if step == nan_at else 1.0)
                yield image, torch.zeros(2, 4, 4, dtype=torch.int64)

        def on_step(run: Run, loss: torch.Tensor) -> bool:
            if after is not None:
                after(run)
            goes_on = self.watch.after_step(run, loss)
            self.watch.writer.wait()
            return goes_on

        loss = dice_ce(self.train)
        advance(
            self.run, batches(), loss=lambda logits, labels: loss(logits, labels),
            lr_at=lambda step: 0.01, stop=stop, seed=1, variant=Variant(threads=1),
            on_step=on_step, forward=lambda image: self.net(image),
        )  # fmt: skip

    def saved(self) -> Run:
        """The state on disk; fails where a number in it is none."""
        net = nn.Conv2d(1, 2, 1)
        run = Run(net, optimiser(self.train, net))
        load_state(self.fold.last, run)
        assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
        return run

    @property
    def losses(self) -> list[float]:
        return [e["loss"] for e in lines(self.fold.history) if "loss" in e]


TOLD = r"the loss is nan at step 3 \(learning rate 0.0099\)"


def test_a_nan_that_the_history_meets_first_is_divergence(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, validate_every=5)
    with simulated(monkeypatch, card(8)), pytest.raises(TrainingDiverged, match=TOLD):
        case.go(10, nan_at=3)
    assert len(case.losses) == 3
    assert case.run.step == 5


def test_a_nan_is_met_at_the_next_reading_at_the_latest(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path)
    with simulated(monkeypatch, card(8)), pytest.raises(TrainingDiverged, match="nan at step 3"):
        case.go(100, nan_at=3)
    assert case.run.step <= CHECK_EVERY_ON_CARD


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_broken_state_is_never_saved_over_a_good_one(tmp_path, monkeypatch, broken) -> None:
    case = Case(tmp_path, save_every_s=1e-9)
    if broken == "gradient":
        case.spoil_gradients(lambda step: step == 3)
    with simulated(monkeypatch, card(8)), pytest.raises(TrainingDiverged, match="at step 3"):
        case.go(10, nan_at=3 if broken == "loss" else -1)
    assert not all(bool(torch.isfinite(p).all()) for p in case.net.parameters())
    assert case.saved().step == 3


def test_weights_that_ran_away_are_not_saved_either(tmp_path, monkeypatch) -> None:
    """The loss of their step was still a number."""

    def after(run: Run) -> None:
        if run.step == 4:
            nn.init.constant_(case.net.weight, torch.inf)

    case = Case(tmp_path, save_every_s=1e-9)
    told = "weights are no longer numbers at step 3"
    with simulated(monkeypatch, card(8)), pytest.raises(TrainingDiverged, match=told):
        case.go(10, after=after)
    assert case.saved().step == 3


def test_losses_are_read_from_a_card_together_and_from_cores_at_once(tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    case = Case(tmp_path)
    with simulated(monkeypatch, card(8)):
        case.go(CHECK_EVERY_ON_CARD + 1, after=lambda run: seen.append(len(case.losses)))
    assert seen == [0] * CHECK_EVERY_ON_CARD + [CHECK_EVERY_ON_CARD]
    seen.clear()
    (tmp_path / "cores").mkdir()
    case = Case(tmp_path / "cores")
    case.go(5, after=lambda run: seen.append(len(case.losses)))
    assert seen == [0, 1, 2, 3, 4]


def test_gradients_that_overflow_now_and_then_skip_their_steps(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, save_every_s=1e-9)
    case.spoil_gradients(lambda step: step % 5 == 0)  # the very first, too
    with simulated(monkeypatch, card(8, TURING)):
        scale_losses(case.run, Variant("float16"), torch.device("cpu"))
        case.go(60)
    assert case.run.scaler.get_scale() == 2**16 / 2**12
    assert case.saved().step == 60
    assert len(case.losses) == 60


def test_gradients_that_always_overflow_are_divergence(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path)
    case.spoil_gradients(lambda step: step >= 10)
    told = "gradients overflow float16 at every step"
    with simulated(monkeypatch, card(8, TURING)), pytest.raises(TrainingDiverged, match=told):
        scale_losses(case.run, Variant("float16"), torch.device("cpu"))
        case.go(200)
    # 31 halvings bring it below, and it is looked at each 25 steps
    assert case.run.step == 49
    assert case.run.scaler.get_scale() < LEAST_SCALE
    assert bool(torch.isfinite(case.net.weight).all())
