"""How fast does a card train, where nobody has measured it? A small table with its sources.

nnU-Net's own epoch times show what its 3D U-Nets get of a card in 16 bits: 0.021 to 0.025 TFLOP/s
for each GB/s of its memory, on Volta, Turing and Ampere alike, and at most 26 % of what its tensor
cores could. Norms, activations and their gradients move more bytes than convolutions have work
for. Cards that are not in that table are estimated by their memory's bandwidth; that ignores large
caches, and is a guess for what came after Ampere. Steps of a few milliseconds, which wait for the
host, and what feeding them takes are not in it.
"""

import re
from dataclasses import dataclass

EPOCHS = "nnU-Net's epoch times on it (expected_epoch_times.md of its branch nnunetv1)"
PER_GB = 0.023
"""TFLOP/s of training for each GB/s: the mean of the five kinds of cards in nnU-Net's table."""
MOST_OF_DENSE = 0.26
"""Of the dense 16-bit throughput with float32 sums, at most so much: the 2080 Ti's share."""
FLOAT32_TAKES = 2.0
"""Times as long as in 16 bits: twice the bytes."""
TYPICAL = "RTX 3090"
"""What a card of unknown kind is taken for."""

EPOCH_TIMES: dict[str, float] = {
    "A100": 34.0, "V100": 19.0, "Quadro RTX 6000": 16.9, "TITAN RTX": 16.5, "RTX 2080 Ti": 14.1,
}  # fmt: skip
"""Card -> TFLOP/s: multiply-adds of nnU-Net's plans for Heart, Liver and Prostate (2D and 3D, 250
steps and 50 of validation) over the seconds of its table; their geometric mean."""

DATASHEETS: dict[str, tuple[float, float]] = {
    "RTX 3060": (25, 360), "RTX 3060 Ti": (32, 448), "RTX 3070": (41, 448),
    "RTX 3080": (60, 760), "RTX 3090": (71, 936), "RTX 3090 Ti": (80, 1008),
    "RTX 4060": (30, 272), "RTX 4060 Ti": (44, 288), "RTX 4070": (58, 504),
    "RTX 4070 Ti": (80, 504), "RTX 4080": (97, 717), "RTX 4090": (165, 1008),
    "RTX 5070": (62, 672), "RTX 5070 Ti": (88, 896), "RTX 5080": (113, 960),
    "RTX 5090": (210, 1792), "T4": (65, 320), "L4": (121, 300), "A10": (125, 600),
    "A10G": (70, 600), "A40": (150, 696), "RTX A6000": (155, 768), "L40S": (362, 864),
    "H100 PCIe": (756, 2000), "H100": (989, 3350), "H200": (989, 4800), "B200": (2250, 8000),
}  # fmt: skip
"""Card -> dense TFLOP/s in 16 bits with float32 sums, and GB/s of its memory: NVIDIA's datasheets
and white papers, rounded."""


@dataclass(frozen=True)
class Throughput:
    """TFLOP/s of a training step in 16 bits, and where the number is from."""

    tflops: float
    source: str


def throughput_of(card: str) -> Throughput:
    """What a card of this name is expected to do; the longest name in it that is known decides.

    An empty name, or one that is not known, is taken for a typical card.
    """
    name = _known(card, (*EPOCH_TIMES, *DATASHEETS))
    if name in EPOCH_TIMES:
        tflops = EPOCH_TIMES[name]
        return Throughput(tflops, f"estimated for {card}: {tflops:g} TFLOP/s, by {EPOCHS}")
    dense, bandwidth = DATASHEETS[name or TYPICAL]
    tflops = min(PER_GB * bandwidth, MOST_OF_DENSE * dense)
    what = card if name else f"{card or 'a card'} of unknown kind, taken for an {TYPICAL}"
    return Throughput(
        tflops,
        f"estimated for {what}: {tflops:.3g} TFLOP/s, of {bandwidth:g} GB/s and {dense:g} TFLOP/s of "
        "dense 16-bit products by what nnU-Net's epoch times show of five other kinds of cards",
    )


def _known(card: str, names: tuple[str, ...]) -> str | None:
    """The longest of the names that stands in a card's own as whole words."""
    said = " ".join(re.findall(r"[a-z0-9]+", card.lower()))
    found = [name for name in names if f" {name.lower()} " in f" {said} "]
    return max(found, key=len, default=None)
