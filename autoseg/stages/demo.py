"""A dataset of phantoms: ellipsoids that stand for a body, an organ and a lesion inside it.

It lets a person see the whole way without data of their own, and gives tests small datasets of
every look (MR, CT, thick slices, two sequences, colour pictures, regions, a few labelled slices).
Nothing about it is anatomy: a
score on it says that the machinery works, and nothing about patients.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from autoseg.errors import AutosegError
from autoseg.files import read_json, replacing_folder, write_json
from autoseg.image.reading import write_image, write_labels
from autoseg.image.volume import Grid

AXES = "RAS"
LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "organ with lesion": [1, 2], "lesion": 2}
UNLABELLED = 3
"""The value of the ignore label, where only some slices are labelled."""
DESCRIPTION = (
    "Synthetic: ellipsoids with blur, noise and a bias field. No patient, no anatomy; a score on "
    "it shows that the machinery works, and nothing else."
)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What the phantoms of one dataset look like; everything that differs between variants.

    `tissues` holds, for every channel, the values of air, body, organ and lesion.
    `lesion_share` is the share of the cases that have a lesion, `lesion_factor` the lesions' mean
    volume as a multiple of the usual one (a tenth of the organ). `bias` is the strength of
    the multiplicative field (standard deviation of its logarithm) and of the change of scale from
    case to case; 0 for CT, whose scale is absolute. `regions` declares the organ with its lesion and
    the lesion as overlapping regions. `labelled_slices` is how many axial slices of each training
    case are labelled, one of them through the lesion; None: all. Test cases are labelled wholly.
    """

    channels: tuple[str, ...]
    tissues: tuple[tuple[float, float, float, float], ...]
    noise: float
    bias: float = 0.0
    shape_vox: tuple[int, int, int] = (40, 48, 40)
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    file_ending: str = ".nii.gz"
    lesion_share: float = 1.0
    lesion_factor: float = 1.0
    regions: bool = False
    labelled_slices: int | None = None


LOOKS = {
    "mr": Look(("MRI",), ((20, 300, 420, 560),), noise=45, bias=0.15),
    "ct": Look(("CT",), ((-1000, 20, 90, 45),), noise=15),
    "thick": Look(
        ("MRI",),
        ((20, 300, 420, 560),),
        noise=45,
        bias=0.15,
        shape_vox=(48, 56, 12),
        spacing_mm=(1.25, 1.25, 5.0),
    ),
    "sequences": Look(
        ("T1", "T2"), ((20, 420, 340, 330), (20, 260, 300, 620)), noise=45, bias=0.15
    ),
    "rgb": Look(
        ("R", "G", "B"),
        ((240, 225, 200, 110), (240, 190, 140, 70), (240, 215, 190, 140)),
        noise=12,
        shape_vox=(80, 64, 1),
        spacing_mm=(1.0, 1.0, 1.0),
        file_ending=".png",
    ),
    "regions": Look(("MRI",), ((20, 300, 420, 560),), noise=45, bias=0.15, regions=True),
    "scribbles": Look(("MRI",), ((20, 300, 420, 560),), noise=45, bias=0.15, labelled_slices=5),
}
"""Ready looks: MR, CT in Hounsfield units, thick slices, two sequences, colour pictures, nested
regions, a few labelled slices."""
LATER = {"regions": False, "labelled_slices": None}
"""Fields of a look that came later: what was made before they did is known without them."""


def make_phantom(
    raw: Path,
    look: Look = LOOKS["mr"],
    *,
    cases: int = 12,
    test_cases: int = 3,
    seed: int = 1,
    name: str = "Dataset001_Phantom",
) -> Path:
    """The folder `raw/name` in nnU-Net's layout, filled; it appears in one step.

    The arguments decide every voxel. A folder that the same arguments made is left as it is, one
    that others made is replaced. Raises AutosegError if the folder holds anything but a phantom.
    """
    if cases < 1 or test_cases < 0 or len(look.tissues) != len(look.channels):
        raise ValueError("a phantom needs a case, and values of the tissues for every channel")
    folder = raw / name
    document = _document(look, cases, test_cases, seed)
    if folder.exists():
        found = _recipe_of(folder)
        if found == document["phantom"]:
            return folder
    with replacing_folder(folder) as half:
        _write_cases(half, look, range(cases), seed, "Tr")
        _write_cases(half, look, range(cases, cases + test_cases), seed, "Ts")
        write_json(half / "dataset.json", document)
    return folder


def _document(look: Look, cases: int, test_cases: int, seed: int) -> dict[str, Any]:
    drawn = {k: v for k, v in asdict(look).items() if k not in LATER or v != LATER[k]}
    recipe = {"look": drawn, "cases": cases, "test_cases": test_cases, "seed": seed}
    labels: dict[str, Any] = {"labels": REGIONS if look.regions else LABELS}
    if look.labelled_slices is not None:
        labels["labels"] = labels["labels"] | {"ignore": UNLABELLED}
    if look.regions:
        labels["regions_class_order"] = [1, 2]
    return {
        "name": "Phantom",
        "description": DESCRIPTION,
        "channel_names": {str(i): channel for i, channel in enumerate(look.channels)},
        **labels,
        "numTraining": cases,
        "file_ending": look.file_ending,
        "licence": "CC0",
        "phantom": recipe | {"version": 1},
    }


def _recipe_of(folder: Path) -> Any:
    """What an earlier phantom was made from, in the types of the present one."""
    path = folder / "dataset.json"
    found = read_json(path) if path.is_file() else None
    if not isinstance(found, dict) or "phantom" not in found:
        raise AutosegError(
            f"{folder} exists and is no phantom; move it away or choose another --root"
        )
    return _tupled(found["phantom"])


def _tupled(value: Any) -> Any:
    """JSON values with lists as tuples, as dataclasses hold them."""
    if isinstance(value, dict):
        return {key: _tupled(v) for key, v in value.items()}
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


def _write_cases(folder: Path, look: Look, indices: range, seed: int, part: str) -> None:
    grid = Grid.of(look.shape_vox, _affine(look), placed=look.file_ending != ".png")
    for index in indices:
        case = f"phantom_{index + 1:03d}"
        image, labels = phantom(look, seed, index)
        if part == "Tr" and look.labelled_slices is not None:
            labels = sliced(labels, look.labelled_slices)
        for channel, pixels in _files(look, image):
            target = folder / f"images{part}" / f"{case}_{channel:04d}{look.file_ending}"
            target.parent.mkdir(exist_ok=True)
            write_image(target, pixels, AXES, grid)
        target = folder / f"labels{part}" / f"{case}{look.file_ending}"
        target.parent.mkdir(exist_ok=True)
        write_labels(target, labels, AXES, grid)


def _affine(look: Look) -> NDArray[np.float64]:
    """RAS, the middle of the grid at the origin; pictures have no place."""
    if look.file_ending == ".png":
        return np.eye(4)
    affine = np.diag([*look.spacing_mm, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(look.shape_vox) - 1) * np.asarray(look.spacing_mm)
    return affine


def _files(look: Look, image: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """(channel number, image) of every file of a case: a picture holds all its channels."""
    if look.file_ending == ".png":
        yield 0, image
    else:
        for channel in range(len(image)):
            yield channel, image[channel : channel + 1]


def phantom(look: Look, seed: int, index: int) -> tuple[NDArray[Any], NDArray[np.int16]]:
    """The image (C, i, j, k) and the labels (i, j, k) of one case, RAS, in the stored types."""
    rng = np.random.default_rng([seed, index])
    spacing = np.asarray(look.spacing_mm)
    extent = np.asarray(look.shape_vox) * spacing
    flat = np.asarray(look.shape_vox) == 1
    extent[flat] = extent[~flat].mean()
    places = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(look.shape_vox, spacing)]
    points = np.stack(np.meshgrid(*places, indexing="ij"), -1).astype(np.float32)
    wobble = 0.07 * _smooth_noise(rng, look, 0.12 * float(extent.mean()))

    body = _ellipsoid(points, 0 * extent, 0.46 * extent, np.eye(3)) + 0.3 * wobble < 1
    axes_mm = np.array([0.24, 0.27, 0.23]) * extent * rng.uniform(0.85, 1.15, 3)
    turn = Rotation.from_rotvec(rng.uniform(-0.35, 0.35, 3) * (flat if flat.any() else 1))
    centre = rng.uniform(-0.07, 0.07, 3) * extent * ~flat
    organ = _ellipsoid(points, centre, axes_mm, turn.as_matrix()) + wobble < 1

    # as bright as a lesion, but outside the organ: brightness alone does not tell the two apart
    side = rng.choice([-1.0, 1.0])
    beside = np.array([side * 0.34, *rng.uniform(-0.1, 0.1, 2)]) * extent * ~flat
    vessel = _ellipsoid(points, beside, np.array([0.05, 0.05, 0.3]) * extent, np.eye(3)) < 1

    has_lesion = floor((index + 1) * look.lesion_share) > floor(index * look.lesion_share)
    radius = (0.1 * look.lesion_factor * rng.uniform(0.7, 1.4)) ** (1 / 3)
    direction = rng.normal(size=3) * ~flat
    direction *= rng.uniform(0, max(0.0, 0.85 - radius)) / np.linalg.norm(direction)
    inside = centre + turn.as_matrix() @ (direction * axes_mm)
    lesion = _ellipsoid(points, inside, radius * axes_mm, turn.as_matrix()) + wobble < 1

    labels = np.where(lesion & organ & has_lesion, 2, organ).astype(np.int16)
    looks_like = np.where(labels > 0, labels + 1, np.where(vessel & body, 3, body))
    return _imaged(look, rng, looks_like), labels


def sliced(labels: NDArray[np.int16], count: int) -> NDArray[np.int16]:
    """Labels (i, j, k) with `count` slices of the last axis kept and UNLABELLED in all others.

    They lie evenly from end to end, but for the one that is moved to where most of the lesion is
    seen, or of the organ where there is none.
    """
    kept = np.linspace(0, labels.shape[2] - 1, count + 2)[1:-1].round().astype(int)
    fullest = int(np.count_nonzero(labels == labels.max(), axis=(0, 1)).argmax())
    kept[np.abs(kept - fullest).argmin()] = fullest
    found = np.full_like(labels, UNLABELLED)
    found[..., kept] = labels[..., kept]
    return found


def _ellipsoid(
    points: Array, centre: NDArray[Any], axes_mm: NDArray[Any], turn: NDArray[Any]
) -> Array:
    """The radius of every point (i, j, k, 3), 1 on the surface of a turned ellipsoid."""
    turned = (points - centre.astype(np.float32)) @ turn.astype(np.float32)
    radius: Array = np.sqrt(((turned / axes_mm.astype(np.float32)) ** 2).sum(-1))
    return radius


def _smooth_noise(rng: np.random.Generator, look: Look, width_mm: float) -> Array:
    """A random field (i, j, k) of mean 0 and deviation 1 that changes over `width_mm`."""
    sigma = [width_mm / s if n > 1 else 0 for s, n in zip(look.spacing_mm, look.shape_vox)]
    noise = gaussian_filter(rng.standard_normal(look.shape_vox), sigma, mode="wrap")
    field: Array = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return field


def _imaged(look: Look, rng: np.random.Generator, tissue: NDArray[Any]) -> NDArray[Any]:
    """The image (C, i, j, k) of a map of tissues: blurred, unevenly bright, noisy."""
    scale = rng.uniform(1 - look.bias, 1 + look.bias)
    channels = []
    for values in look.tissues:
        clean = np.asarray(values, np.float32)[tissue]
        sigma = [0.9 / s if n > 1 else 0 for s, n in zip(look.spacing_mm, look.shape_vox)]
        uneven = np.exp(look.bias * _smooth_noise(rng, look, 0.3 * look.shape_vox[0]))
        noise = rng.normal(0, look.noise, tissue.shape)
        channels.append(gaussian_filter(clean, sigma) * uneven * scale + noise)
    image = np.stack(channels).round()
    if look.file_ending == ".png":
        return image.clip(0, 255).astype(np.uint8)
    lowest = -1024 if min(look.tissues[0]) < 0 else 0
    return image.clip(lowest, 32767).astype(np.int16)
