"""Grids survive JSON, volumes know their spacing."""

import json

import numpy as np

from autoseg.image.volume import Grid, Volume

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0, -3, 20], [0, 0.75, 0, -30], [0, 0, 0, 1]], dtype=float)


def test_a_grid_knows_spacing_orientation_and_dimensions() -> None:
    grid = Grid.of((4, 5, 6), AFFINE)
    assert grid.spacing_mm == (0.5, 0.75, 3.0)
    assert grid.orientation == "LSP"
    assert grid.dimensions == 3
    assert Grid.of((4, 5, 1), AFFINE).dimensions == 2


def test_a_grid_survives_json() -> None:
    grid = Grid.of((4, 5, 1), AFFINE / 3, placed=False)
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    assert hash(grid) == hash(Grid.of((4, 5, 1), AFFINE / 3, placed=False))


def test_a_volume_has_its_spacing_in_the_order_of_its_axes() -> None:
    grid = Grid.of((4, 5, 6), AFFINE)
    assert Volume(np.zeros((1, 5, 6, 4)), "SAR", grid).spacing_mm == (0.75, 3.0, 0.5)
    assert Volume(np.zeros((1, 6, 5, 4)), "stored", grid).spacing_mm == (3.0, 0.75, 0.5)
