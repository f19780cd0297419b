"""The measurement of large predictions still runs, and its sizes are what it says."""

import pytest
import torch

from bench.predict_memory import predicted, whole_volume_bytes


@pytest.mark.slow
def test_a_small_prediction_is_measured():
    threads = torch.get_num_threads()
    try:
        row = predicted(1.0, 8)
    finally:
        torch.set_num_threads(threads)
    assert row["full_vox"] == (37, 64, 64) and row["prepared_vox"] == (34, 62, 62)
    assert row["peak_bytes"] >= row["peak_before_bytes"] > 50e6
    assert row["found_labels"] > 5
    assert row["cpu_s"] > 0


def test_whole_volumes_are_the_logits_on_both_grids_and_the_labels():
    assert whole_volume_bytes((10, 10, 10), (20, 10, 10)) == 80 * 3000 + 2 * 2000
