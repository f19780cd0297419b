"""How many bytes may a training step take on a card, and how are they reckoned with few askings?

What a card keeps for itself is data with a source. The bytes of a step come in as a function that
runs the step on shapes alone, which takes about a second, so it is asked as seldom as the answer
allows: for one network they grow linearly with voxels times batch wherever activations decide.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod

from autoseg.rules.decision import Size
from autoseg.rules.topology import Topology

GB = 2**30


@dataclass(frozen=True)
class Overhead:
    """What cannot be given to a step: a share of the card and a fixed part, and who says so."""

    share: float
    fixed_gb: float
    source: str


OVERHEADS: dict[str, Overhead] = {
    "card": Overhead(
        share=0.1,
        fixed_gb=1.5,
        source="assumed until measured on cards: a tenth for the allocator's gaps and for what a "
        "card sold as 8 GB lacks of 8 GiB; 1.5 GB for CUDA's context, cuDNN's workspace and the "
        "desktop",
    ),
}
"""Device class -> what it keeps for itself."""


def usable_bytes(target_gb: float, device: str = "card") -> float:
    """The bytes of a training step that fit a card of `target_gb`; may be negative."""
    kept = OVERHEADS[device]
    return ((1 - kept.share) * target_gb - kept.fixed_gb) * GB


def target_for(step_bytes: float, device: str = "card") -> float:
    """The memory of the smallest card on which a step of so many bytes fits, in GB, to 0.1 up."""
    kept = OVERHEADS[device]
    return ceil((step_bytes / GB + kept.fixed_gb) / (1 - kept.share) * 10) / 10


BytesOf = Callable[[Topology, int], float]
"""(topology, batch) -> peak bytes of one training step."""
Key = tuple[tuple[Size, ...], tuple[Size, ...]]

AGREES = 0.02
"""A line that is off by more at the patch that was chosen is not believed any more."""
CLOSE, OWN_LINE, OWN_POINT, OTHERS = 0.005, 0.05, 0.25, 0.2
"""How far an estimate may be off, as a share: at a point that was asked; and for each time that
the voxels double, by a line through two points of the same levels, or by one point and the slope of
others; and for levels that were never asked at all."""
SHAPES = 0.5
"""How far apart two patches of equal voxels may be, as a share: windows pad some shapes more."""
BATCHES = 0.1
"""How far the bytes of one more sample may be off, where another peak decides for small batches."""
SPREAD = 1.2
"""Two points make a line where one has so many times the voxels of the other."""


@dataclass
class Reckoner:
    """Whether steps fit `limit` bytes, for one network on whatever topology.

    Estimates decide where they are clear, and the function itself is asked where they are not.
    """

    bytes_of: BytesOf
    limit: float
    known: dict[tuple[Key, Size, int], float] = field(default_factory=dict)
    points: dict[Key, dict[float, float]] = field(default_factory=dict)
    """Levels -> voxels times batch -> bytes."""
    doubted: set[Key] = field(default_factory=set)

    def real(self, topology: Topology, batch: int) -> float:
        """The bytes of a step, asked at most once."""
        key = topology.strides, topology.kernels
        asked = key, topology.patch_vox, batch
        if asked not in self.known:
            self.known[asked] = self.bytes_of(topology, batch)
            volume = float(prod(topology.patch_vox) * batch)
            self.points.setdefault(key, {})[volume] = self.known[asked]
        return self.known[asked]

    def fits(self, topology: Topology, batch: int, doubt: float = 0.0) -> bool:
        """Whether a step stays within the limit; estimated where that is beyond doubt.

        An estimate is taken to be off by `doubt` at least, as a share.
        """
        key = topology.strides, topology.kernels
        guess = self.guess(topology, batch)
        if guess is not None and (key, topology.patch_vox, batch) not in self.known:
            value, error = guess[0], max(guess[1], doubt)
            if value > self.limit * (1 + error):
                return False
            if value < self.limit * (1 - error):
                return True
        return self.real(topology, batch) <= self.limit

    def confirms(self, topology: Topology, batch: int) -> bool:
        """Whether the step costs what was estimated, within AGREES, and fits.

        If not, the search must be made again with what is known now; levels whose own line was
        wrong, as full attention's may be, are asked in every case from then on.
        """
        key = topology.strides, topology.kernels
        had_line = self._line(key, topology, batch) is not None
        guess = self.guess(topology, batch)
        value = self.real(topology, batch)
        if (guess is None or abs(guess[0] / value - 1) <= AGREES) and value <= self.limit:
            return True
        if had_line:
            self.doubted.add(key)
        return False

    def filling(self, topology: Topology, batch: int) -> int:
        """A batch whose step is not far below the limit: costs as they are at `batch`, scaled."""
        return max(batch + 1, int(batch * self.limit / self.real(topology, batch)))

    def guess(self, topology: Topology, batch: int) -> tuple[float, float] | None:
        """The bytes as estimated and the share by which they may be off; None: ask."""
        key = topology.strides, topology.kernels
        asked = self.known.get((key, topology.patch_vox, batch))
        if asked is not None:
            return asked, 0.0
        if key in self.doubted:
            return None
        line = self._line(key, topology, batch)
        if line is not None:
            return line
        volume = float(prod(topology.patch_vox) * batch)
        everyone = {v: b for points in self.points.values() for v, b in points.items()}
        own = self.points.get(key, {})
        x = _nearest(own or everyone, volume)
        if x is None:
            return None
        start, slope = (own or everyone)[x], _slope(everyone, volume)
        if slope is not None:
            apart = _apart(volume, x)
            error = CLOSE + OWN_POINT * apart if own else OTHERS * (1 + apart)
            return start + slope * (volume - x), error
        if volume < x and start * volume / x > self.limit:
            # the fixed part does not shrink, so that a step can only cost more
            return start * volume / x, OTHERS
        return None

    def _line(self, key: Key, topology: Topology, batch: int) -> tuple[float, float] | None:
        """The estimate of a line through points of the same levels, where there are two."""
        own = self.points.get(key, {})
        volume = float(prod(topology.patch_vox) * batch)
        slope = _slope(own, volume)
        if slope is None:
            return None
        x = min(own, key=lambda x: _apart(volume, x))
        return own[x] + slope * (volume - x), CLOSE + OWN_LINE * _apart(volume, x)


def _nearest(points: dict[float, float], volume: float) -> float | None:
    return min(points, key=lambda x: (_apart(volume, x), x), default=None)


def _apart(a: float, b: float) -> float:
    """How many times the larger is the smaller once more: 1 for twice as many."""
    return max(a, b) / min(a, b) - 1


def _slope(points: dict[float, float], volume: float) -> float | None:
    """Bytes a voxel between the two points nearest to `volume` that are SPREAD apart, or None."""
    x = _nearest(points, volume)
    if x is None:
        return None
    others = {v: b for v, b in points.items() if _apart(v, x) >= SPREAD - 1}
    y = _nearest(others, volume)
    return None if y is None else (points[y] - points[x]) / (y - x)
