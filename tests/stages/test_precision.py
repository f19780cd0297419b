"""Networks predict in the precision that they were trained in, and 16 bits find what 32 bits find."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from autoseg.documents.model import Member, Precision, Weights
from autoseg.documents.plan import Configuration
from autoseg.documents.run import append_line
from autoseg.errors import AutosegError
from autoseg.files import sha256_file
from autoseg.infer.together import NoRoom
from autoseg.learn.weights import save_weights
from autoseg.models import precision as module
from autoseg.models.members import Model, _precision, narrowed
from autoseg.models.precision import precision_on
from autoseg.models.segment import Shown, Voice
from autoseg.nets.build import build
from autoseg.workspace import Fold
from tests.card import AMPERE, FULL, TURING, card, simulated
from tests.stages.tiny_model import configuration, one_network

CPU = torch.device("cpu")


def trained_in(precision: Precision, tmp_path: Path, where: str = "cuda") -> Member:
    member = one_network(tmp_path).members[0]
    return member.model_copy(
        update={"precision": precision, "layouts": {where: "contiguous"}}, deep=True
    )


@pytest.mark.parametrize(
    ("trained", "asked", "capability", "computed"),
    [
        ("float32", None, AMPERE, "float32"),
        ("bfloat16", None, AMPERE, "bfloat16"),
        ("float16", None, AMPERE, "float16"),
        ("float16", None, TURING, "float16"),
        ("bfloat16", None, TURING, "float16"),
        ("bfloat16", "float32", AMPERE, "float32"),
        ("float32", "bfloat16", AMPERE, "bfloat16"),
        ("float32", "bfloat16", TURING, "float16"),
    ],
)
def test_a_card_computes_as_was_trained_or_asked(
    trained: Precision, asked: Precision | None, capability: tuple[int, int], computed: Precision,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    member = trained_in(trained, tmp_path)
    with simulated(monkeypatch, card(8, capability)), caplog.at_level(logging.WARNING):
        assert precision_on(CPU, member, asked) == computed
    told = "has no units for bfloat16" in caplog.text
    assert told == (computed == "float16" and "bfloat16" in (asked or trained))


@pytest.mark.parametrize(
    ("trained", "where", "works", "asked", "computed"),
    [
        ("bfloat16", "cpu", True, None, "bfloat16"),
        ("bfloat16", "cpu", False, None, "float32"),
        ("bfloat16", "cuda", True, None, "float32"),
        ("float16", "cuda", True, None, "float32"),
        ("float32", "cpu", True, None, "float32"),
        ("bfloat16", "cpu", True, "float32", "float32"),
    ],
)
def test_processors_compute_float32_unless_trained_in_bfloat16_on_one(
    trained: Precision, where: str, works: bool, asked: Precision | None, computed: Precision,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "bfloat16_works", lambda: works)
    assert precision_on(CPU, trained_in(trained, tmp_path, where), asked) == computed


def test_what_a_processor_cannot_compute_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="which only a card computes"):
        precision_on(CPU, trained_in("bfloat16", tmp_path), "float16")


def test_a_member_carries_what_the_journal_says(tmp_path: Path) -> None:
    fold = Fold(tmp_path)
    assert _precision(fold) == "float32"  # nothing was written down before there was a choice
    for precision in ("bfloat16", "float16"):
        append_line(fold.journal, {"event": "variant", "precision": precision})
        append_line(fold.journal, {"event": "saved"})
    assert _precision(fold) == "bfloat16"  # the one that the run began with, and keeps


def test_packages_without_a_precision_are_float32(tmp_path: Path) -> None:
    document = trained_in("bfloat16", tmp_path).dump()
    assert Member.parse(document, "it").precision == "bfloat16"
    del document["precision"]
    assert Member.parse(document, "it").precision == "float32"


def test_what_is_asked_for_is_part_of_how_label_maps_are_made(tmp_path: Path) -> None:
    model = Model(one_network(tmp_path), tmp_path)
    asked = narrowed(model, precision="bfloat16")
    assert asked.spec == model.spec and asked.digest != model.digest == model.spec.digest
    assert narrowed(model, precision="float32").digest == model.digest


# ---- the same structures


def scene(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image (1, Z, Y, X) with two kinds of balls, and its labels (Z, Y, X)."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    labels = np.zeros(shape, np.int64)
    for number in range(labels.size // 400):
        middle = rng.uniform(0, shape, 3)[:, None, None, None]
        labels[((grid - middle) ** 2).sum(0) < rng.uniform(3, 5) ** 2] = 1 + number % 2
    image = np.array([0.0, 2.0, 4.0])[labels] + rng.normal(0, 0.3, shape)
    return image[None].astype(np.float32), labels


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Member, Path]:
    """A tiny network that finds the balls."""
    document = configuration().dump()
    document["predict"]["mirror"] = False
    made = Configuration.parse(document, "the tiny configuration")
    torch.manual_seed(0)
    net = build(made.network)
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(40):
        image, labels = scene((8, 16, 16), step)
        logits = net(torch.from_numpy(image)[None])[0]
        steps.zero_grad()
        F.cross_entropy(logits, torch.from_numpy(labels)[None]).backward()
        steps.step()
    path = tmp_path_factory.mktemp("learned") / "weights.safetensors"
    save_weights(path, net, {"step": 40})
    weights = Weights(fold="0", file=path.name, sha256=sha256_file(path), size=path.stat().st_size)
    return Member(
        name="3d", plan="default", run="a", configuration=made, weights=(weights,),
        precision="bfloat16",
    ), path  # fmt: skip


@pytest.fixture
def plain_convolutions() -> Iterator[None]:
    """oneDNN's 16-bit kernels may end the process where a machine announces what it cannot do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def dice(one: np.ndarray, other: np.ndarray, label: int) -> float:
    a, b = one == label, other == label
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    ("capability", "precision", "bound"), [(AMPERE, "bfloat16", 0.02), (TURING, "float16", 0.003)]
)
def test_sixteen_bits_find_what_float32_finds(
    capability: tuple[int, int], precision: Precision, bound: float, learned: tuple[Member, Path],
    plain_convolutions: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    member, path = learned
    image, truth = scene((12, 28, 28), 1000)
    info: dict[str, Any] = {
        "box": [(0, n) for n in truth.shape], "arranged_shape": truth.shape,
        "target_mm": (1.0, 1.0, 1.0), "spacing_mm": (1.0, 1.0, 1.0),
    }  # fmt: skip
    with simulated(monkeypatch, card(8, capability)):
        voices = Voice(member, [path], CPU), Voice(member, [path], CPU, "float32")
        assert [v.variant.precision for v in voices] == [precision, "float32"]
        half, full = (
            torch.cat([rows for _, rows in voice.rows(Shown(image, info))], 1) for voice in voices
        )
    error = float((half - full).square().mean().sqrt())
    assert 0 < error < bound * float(full.std())
    found, wanted = (x.argmax(0).numpy() for x in (half, full))
    for label in (1, 2):
        assert dice(found, wanted, label) > 0.99
        assert dice(wanted, truth, label) > 0.6  # of a network that knows what it is about


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_card_without_room_for_the_networks_is_explained(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(Voice, "_speaker", full)
    member = trained_in("float32", tmp_path)
    with simulated(monkeypatch, card(8)), pytest.raises(NoRoom, match="no room for 2 networks"):
        Voice(member, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], CPU)
