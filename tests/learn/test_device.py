"""Where a network is computed, and what is said of places that are none."""

import pytest
import torch

from autoseg.errors import AutosegError
from autoseg.learn.device import pick_device


@pytest.mark.parametrize(
    ("wanted", "told"),
    [("mps", "cpu and cuda alone"), ("meta", "cpu and cuda alone"), ("gpu", "is unknown")],
)
def test_other_devices_are_refused(wanted: str, told: str) -> None:
    with pytest.raises(AutosegError, match=told):
        pick_device(wanted)


def test_a_card_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(AutosegError, match=r"cuda:5: there are 2 cards"):
        pick_device("cuda:5")
