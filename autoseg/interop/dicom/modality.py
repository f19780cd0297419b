"""Of which modality is a series, and of which the channel of a model: is one taken for the other?"""

import re
from collections.abc import Iterator, Sequence

from autoseg.errors import Problem
from autoseg.interop.dicom.choosing import Scan

SPOKEN = {"CT": "CT", "MR": "MR", "PT": "PET"}
"""Modality of DICOM -> how people call it."""

NAMES = {
    "CT": re.compile(r"(ct|cta|cect|ncct|cbct)[0-9]*"),
    "MR": re.compile(r"mri?[0-9]*|mra|t[12](w|wi|c|ce|gd|star)?|flair|adc|dwi|swi|dixon"),
    "PT": re.compile(r"pet[0-9]*|pt|suv|fdg"),
}
"""Modality -> the words in a channel's name that mean it."""


def modality_of(channel: str) -> str | None:
    """The modality that a channel's name speaks of (CT, MR or PT); None if it may be any."""
    words = re.findall(r"[a-z0-9]+", channel.lower())
    meant = [m for m, name in NAMES.items() if any(name.fullmatch(word) for word in words)]
    return meant[0] if len(meant) == 1 else None


def of_another_modality(scan: Scan, channels: Sequence[str]) -> Iterator[Problem]:
    """A warning for each series that is of another modality than the channel it is taken for."""
    if len(scan.channels) != len(channels):
        return
    for series, channel in zip(scan.channels, channels):
        found, meant = series.frames[0].instance.modality, modality_of(channel)
        if meant is None or found not in SPOKEN or found == meant:
            continue
        yield Problem(
            scan.case,
            "a series is of another modality than the model was trained on",
            f"{SPOKEN[found]} ({series.frames[0].instance.description or 'without description'}), "
            f"the model takes {SPOKEN[meant]} (channel {channel!r})",
            f"choose a {SPOKEN[meant]} series (--series), or a model for {SPOKEN[found]}",
            fatal=False,
        )
