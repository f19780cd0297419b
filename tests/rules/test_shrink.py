"""What follows after out-of-memory: one plan that is computed to fit, and that the planner takes."""

from math import prod

import pytest

from autoseg.documents.plan import Configuration
from autoseg.documents.settings import patched
from autoseg.rules.card import SMALLEST_BATCH, SMALLEST_VOX
from autoseg.rules.memory import GB, usable_bytes
from autoseg.rules.planner import make_plan
from autoseg.rules.shrink import RAM_SHARE, SHARES, Room, card_room, fitting, ram_room, room_after
from autoseg.rules.world import Ask
from tests.rules.made import CARD, bytes_of, fingerprint

DATA = fingerprint(shape=(120, 100, 110), spacing_mm=(1.0, 1.0, 1.0))


def cost(configuration: Configuration) -> float:
    return bytes_of(configuration.network, configuration.patch_vox, configuration.train.batch_size)


def changed(configuration: Configuration, **values: object) -> Configuration:
    changes = {key.replace("__", "."): value for key, value in values.items()}
    return Configuration.parse(patched(configuration.dump(), changes), "the run")


@pytest.mark.parametrize("name", ["3d_fullres", "2d"])
@pytest.mark.parametrize("network", ["plain", "mednext_s"])
@pytest.mark.parametrize("share", [0.95, 0.7, 0.4, 0.2, 0.1, 0.05])
def test_what_is_computed_fits_is_no_smaller_than_it_must_be_and_is_taken(
    name: str, network: str, share: float
) -> None:
    pins = {f"{name}.batch_size": 12 if name == "2d" else 4}
    asked = Ask(device=CARD, network=network, pins=pins)
    before = make_plan(DATA, asked).configurations[name]
    limit = share * cost(before)
    found = fitting(before, limit, bytes_of)
    if found is None:
        # not even about the smallest patch, computed again: the weights take most
        smallest = (64, 64) if name == "2d" else (48, 48, 32)
        again = changed(before, network__recompute=True).network
        assert bytes_of(again, smallest, SMALLEST_BATCH) > limit
        return
    after = changed(before, **{k.replace(".", "__"): v for k, v in found.value.items()})
    batch, most = after.train.batch_size, before.train.batch_size
    assert cost(after) <= limit
    if batch < most - (after.patch_vox == before.patch_vox and after.network == before.network):
        assert cost(changed(after, train__batch_size=batch + 1)) > limit
    if after.network.recompute:  # not without need
        assert cost(changed(before, train__batch_size=SMALLEST_BATCH)) > limit
    if after.patch_vox != before.patch_vox:
        again = changed(before, train__batch_size=SMALLEST_BATCH, network__recompute=True)
        assert cost(again) > limit
    smallest = min(
        SMALLEST_VOX[after.dimensions], prod(after.median_shape_vox[-len(after.patch_vox) :])
    )
    assert prod(after.patch_vox) >= smallest
    pins |= {f"{name}.{key}": value for key, value in found.value.items()}
    planned = make_plan(DATA, Ask(device=CARD, network=network, pins=pins)).configurations[name]
    assert (planned.patch_vox, planned.train.batch_size) == (after.patch_vox, batch)
    assert planned.network.recompute == after.network.recompute
    assert cost(planned) <= limit


def test_few_askings_answer_for_a_large_batch() -> None:
    """Each asking takes a second, and a step of another size was asked for in the ones before."""
    before = make_plan(DATA, Ask(device=CARD, pins={"2d.batch_size": 300})).configurations["2d"]
    asked = []

    def counting(network, patch, batch) -> float:
        asked.append((patch, batch))
        return bytes_of(network, patch, batch)

    found = fitting(before, 0.37 * cost(before), counting)
    assert found is not None
    assert 80 < found.value["train.batch_size"] < 112
    assert len(asked) <= 6
    assert f"a batch of {found.value['train.batch_size']} in the place of 300 needs" in found.why


def test_the_batch_alone_may_change_where_other_folds_are_trained() -> None:
    before = make_plan(DATA, Ask(device=CARD, pins={"batch_size": 4})).configurations["3d_fullres"]
    found = fitting(before, 0.8 * cost(before), bytes_of, batch_alone=True)
    assert found is not None
    assert found.value["patch_vox"] == list(before.patch_vox)
    assert found.value["network.recompute"] == before.network.recompute
    assert fitting(before, 0.2 * cost(before), bytes_of, batch_alone=True) is None


def test_nothing_is_proposed_below_the_smallest() -> None:
    data = fingerprint(shape=(32, 32, 32), spacing_mm=(1.0, 1.0, 1.0))
    plan = make_plan(data, Ask(device=CARD, pins={"network.recompute": True, "batch_size": 2}))
    assert fitting(plan.configurations["3d_fullres"], 1.0, bytes_of) is None


def test_a_card_offers_what_the_planner_would_reckon_with_or_what_others_leave() -> None:
    whole = card_room(7.4 * GB, 8 * GB)
    assert whole.step_bytes == pytest.approx(usable_bytes(8))
    shared = card_room(3 * GB, 8 * GB)
    assert shared.step_bytes == pytest.approx(0.9 * 3 * GB)
    assert "3.00 of its 8.00 GB free" in shared.why
    assert card_room(0, 8 * GB).step_bytes == 0
    assert ram_room(10 * GB).step_bytes == RAM_SHARE * 10 * GB


def test_where_a_step_was_counted_to_fit_and_did_not_less_is_allowed() -> None:
    room = Room(10.0, "what is there")
    assert room_after(17.0, room, 0) == room
    assert room_after(9.0, room, 0).step_bytes == pytest.approx(SHARES[0] * 9)
    assert room_after(9.0, room, 1).step_bytes == pytest.approx(SHARES[1] * 9)
    # the second attempt never allows what the first did
    assert room_after(10.5, room, 1).step_bytes == pytest.approx(SHARES[1] * 10.5)
    assert "60%" in room_after(9.0, room, 1).why
