"""How large may a patch be? A search along its axes, whatever "fits" means.

A patch keeps the proportions of a typical case as long as it must shrink: the edge that is longest
in relation to the median is shortened first, as in nnU-Net. It then grows back, relatively shortest
edge first, until one more step along any axis would not fit or would only pad.
"""

from collections.abc import Callable, Iterator
from math import prod

from autoseg.rules.topology import Topology

On = Callable[[tuple[float, ...]], Topology]
"""The least patch that holds another and suits the network, with its levels."""
Fits = Callable[[Topology], bool]


def descending(start: Topology, median_vox: tuple[float, ...], on: On) -> Iterator[Topology]:
    """`start` and ever smaller patches; ends where the relatively longest edge cannot be shorter."""
    found: Topology | None = start
    while found is not None and found.levels > 1:
        yield found
        size = found.patch_vox
        longest = max(range(len(size)), key=lambda axis: (size[axis] / median_vox[axis], axis))
        found = shorter(found, longest, on)


def shorter(topology: Topology, axis: int, on: On) -> Topology | None:
    """The next patch of fewer voxels that is shorter along one axis, or None."""
    patch = topology.patch_vox
    step, edge = 1, patch[axis] - 1
    while edge > 0:
        found = on((*patch[:axis], edge, *patch[axis + 1 :]))
        # where one axis gets too short to be halved, another may be padded for one more level
        if found.patch_vox[axis] < patch[axis] and prod(found.patch_vox) < prod(patch):
            return found
        # what a shorter edge is a multiple of divides what this one is a multiple of
        step = 2 * step if 2 * step <= topology.divisor[axis] else step + topology.divisor[axis]
        edge = patch[axis] - step
    return None


def longer(topology: Topology, axis: int, median_vox: tuple[float, ...], on: On) -> Topology | None:
    """The next larger patch along one axis, or None where it would see no more of a typical case.

    Another axis may grow with it, where the longer one lets it be halved once more.
    """
    patch = topology.patch_vox
    if patch[axis] >= median_vox[axis]:
        return None
    return on((*patch[:axis], patch[axis] + 1, *patch[axis + 1 :]))


def grown(topology: Topology, median_vox: tuple[float, ...], on: On, fits: Fits) -> Topology:
    """A patch that fits, as large as it can be made step by step, at most as a typical case."""
    while True:
        size = topology.patch_vox
        order = sorted(range(len(size)), key=lambda axis: (size[axis] / median_vox[axis], axis))
        steps = (longer(topology, axis, median_vox, on) for axis in order)
        found = next((step for step in steps if step is not None and fits(step)), None)
        if found is None:
            return topology
        topology = found


def largest_number(most: int, least: int, fits: Callable[[int], bool]) -> int:
    """The largest number from `least` to `most` that fits, `least` being known to."""
    if most <= least or fits(most):
        return max(most, least)
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
