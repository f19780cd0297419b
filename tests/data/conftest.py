from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.data.store import StoredCases
from autoseg.data.writing import write_case


@pytest.fixture
def phantom() -> Callable[..., tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """Makes (image, labels): noise with a box of class 1 and, inside it, one of class 2."""

    def make(
        shape: tuple[int, int, int], channels: int = 1, seed: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        rng = np.random.default_rng(seed)
        labels = np.zeros(shape, np.int16)
        labels[tuple(slice(n // 4, n // 4 + max(1, n // 2)) for n in shape)] = 1
        labels[tuple(slice(n // 2, n // 2 + max(1, n // 5)) for n in shape)] = 2
        image = rng.standard_normal((channels, *shape)).astype(np.float32) + labels
        return image, labels

    return make


@pytest.fixture
def three_cases(tmp_path: Path, phantom: Callable[..., tuple]) -> StoredCases:
    """Three cases of two channels, of other sizes, two foreground classes."""
    for k, shape in enumerate([(9, 14, 12), (6, 20, 15), (12, 11, 16)]):
        folder = tmp_path / f"case_{k}"
        folder.mkdir()
        image, labels = phantom(shape, channels=2, seed=k)
        labels[0, 0, :3] = -1
        write_case(folder, image, labels, {"case": folder.name, "spacing_mm": [3.0, 1.0, 1.0]})
    return StoredCases(tmp_path, ["case_0", "case_1", "case_2"])
