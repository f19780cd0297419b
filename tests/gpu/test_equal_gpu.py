"""What is computed on a card is what is computed on the processor, as far as floats allow.

Matrix products and convolutions go in float32 without TF32 here, so that differences are those of
the order of sums.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoseg.data.augment import Sample, SampleParameters, apply, needed_box
from autoseg.data.augment_draw import rotation
from autoseg.device import card_facts, pick_device
from autoseg.documents.plan import Prediction, Training
from autoseg.documents.presets.table import network_spec
from autoseg.image import resample
from autoseg.infer.resample import OnDevice
from autoseg.infer.volume import logit_slabs
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.state import Run
from autoseg.learn.variants import Layout, Variant
from autoseg.nets.build import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no card"),
]
PLACES = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def exact_floats() -> Iterator[None]:
    """After `pick_device`, which may set what is faster."""
    pick_device("cuda")
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.conv.fp32_precision
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.conv.fp32_precision = convolutions


def spec_of(preset: str, axes: int):
    strides = [(1,) * axes, *[(2,) * axes] * 2]
    return network_spec(preset, 2, 3, (8, 16, 32), strides, [(3,) * axes] * 3)


def losses_of_steps(
    preset: str, patch: tuple[int, ...], place: str, variant: Variant, steps: int = 4
) -> list[float]:
    """The losses of some steps of training from the same weights on the same batches."""
    torch.manual_seed(0)
    spec = spec_of(preset, len(patch))
    train = Training(steps=steps, batch_size=2, supervision=spec.output_weights)
    net = build(spec)
    batches = [(torch.randn(2, 2, *patch), torch.randint(0, 3, (2, *patch))) for _ in range(steps)]
    net = net.to(place)
    run, losses = Run(net, optimiser(train, net)), []
    if variant.precision == "float16":
        run.scaler = torch.amp.GradScaler(place)

    def on_step(_: Run, value: torch.Tensor) -> bool:
        losses.append(value.detach().clone())
        return True

    advance(
        run, batches, loss=deeply(dice_ce(train), train.supervision), lr_at=lambda _: 0.01,
        stop=steps, seed=0, variant=variant, clip_norm=12.0, on_step=on_step,
    )  # fmt: skip
    return [float(value) for value in losses]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("preset", "patch"), [("plain", (32, 24, 16)), ("resenc_m", (48, 40))])
def test_steps_are_the_same(preset: str, patch: tuple[int, ...], layout: Layout) -> None:
    here, there = (losses_of_steps(preset, patch, p, Variant("float32", layout)) for p in PLACES)
    assert there == pytest.approx(here, rel=2e-3)
    assert len(set(here)) == len(here)


def test_steps_in_sixteen_bits_are_near() -> None:
    precision = card_facts(pick_device("cuda")).precision
    here = losses_of_steps("plain", (32, 24, 16), "cpu", Variant())
    there = losses_of_steps("plain", (32, 24, 16), "cuda", Variant(precision, "channels_last"))
    assert there == pytest.approx(here, rel=0.03)


@pytest.mark.parametrize("patch", [(16, 20, 24), (24, 20)])
def test_augmentation_is_the_same(patch: tuple[int, ...]) -> None:
    axes = len(patch)
    turned = rotation((0.4, -0.3, 0.5) if axes == 3 else (0.8,)) * 1.1
    drawn = SampleParameters(
        matrix=tuple(tuple(row) for row in turned.tolist()),
        blur_sigma_vox=((0.7,) * axes, None), brightness=(1.1, 0.9), contrast=(0.8, 1.2),
        low_resolution=(None, (0.6,) * axes), gamma=(1.2, 0.8), gamma_inverted=(None, 1.1),
        mirror=(1,),
    )  # fmt: skip
    shift, size = needed_box(drawn, patch)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal((2, *size)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(-1, 4, size).astype(np.int16))
    (here, here_labels), (there, there_labels) = (
        apply([Sample(image.to(p), labels.to(p), shift)], [drawn], patch) for p in PLACES
    )
    np.testing.assert_allclose(there.cpu().numpy(), here.numpy(), atol=1e-3)
    assert (there_labels.cpu() != here_labels).float().mean() < 0.005


@pytest.mark.parametrize(
    ("spacing", "target"), [((1.0, 1.0, 1.0), (1.7, 0.8, 1.0)), ((5.0, 0.8, 0.8), (4.0, 1.0, 1.1))]
)
def test_resampling_is_the_same(
    spacing: tuple[float, float, float], target: tuple[float, float, float]
) -> None:
    image = np.random.default_rng(0).standard_normal((2, 21, 48, 40)).astype(np.float32)
    shape = [round(n * a / b) for n, a, b in zip(image.shape[1:], spacing, target, strict=True)]
    here = resample.resample_image(image, shape, spacing_mm=spacing, target_mm=target)
    there = OnDevice(pick_device("cuda"))(image, shape, spacing_mm=spacing, target_mm=target)
    np.testing.assert_allclose(there, here, atol=2e-4)


def labels_of(place: str, variant: Variant) -> NDArray[np.int64]:
    """The label map of a made-up volume by random weights."""
    torch.manual_seed(1)
    net = build(spec_of("plain", 3)).to(place).eval()
    image = np.random.default_rng(0).standard_normal((2, 40, 36, 44)).astype(np.float32)
    with variant.pinned():
        slabs = logit_slabs(
            [variant.speaking(net)], image, (16, 16, 16), 3, Prediction(), (0, 1, 2), place
        )
        return np.concatenate([slab.argmax(0).cpu().numpy() for _, slab in slabs])


def test_label_maps_are_the_same() -> None:
    here, there = (labels_of(place, Variant("float32", "channels_last")) for place in PLACES)
    assert (here != there).mean() < 1e-3
    assert len(np.unique(here)) > 1


def test_label_maps_in_sixteen_bits_are_near() -> None:
    precision = card_facts(pick_device("cuda")).precision
    here = labels_of("cpu", Variant())
    there = labels_of("cuda", Variant(precision, "channels_last"))
    # random weights decide by little: a trained network's differences are fewer
    assert (here != there).mean() < 0.05


def test_a_step_that_finds_no_room_leaves_the_card_to_the_next() -> None:
    """As a trial of a variant meets it: a step far too large, then one that fits."""
    place = pick_device("cuda")
    whole = card_facts(place).total_bytes
    edge = int((2 * whole / 32) ** (1 / 3)) // 8 * 8
    spec = spec_of("plain", 3)
    net = build(spec).to(place)
    with pytest.raises((torch.OutOfMemoryError, RuntimeError)):
        net(torch.empty(2, 2, edge, edge, edge, device=place))
    del net
    assert len(losses_of_steps("plain", (32, 24, 16), "cuda", Variant())) == 4
