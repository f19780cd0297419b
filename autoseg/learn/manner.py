"""What a person may ask of a training run beside what is learned: how its steps are computed."""

from dataclasses import dataclass
from typing import Literal

from autoseg.errors import AutosegError

Wish = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Manner:
    """Wishes for one call of `train`; they are in no stamp, since nothing learned depends on them.

    Sums in another order differ in the last bits all the same, so the journal says what was done.
    """

    compile: Wish = "auto"
    measure_again: bool = False
    """Time the variants of the step anew; a run that was begun keeps its own."""
    profile: bool = False
    """Write where the time of some steps went."""


def compile_wish(text: str) -> Wish:
    """What --compile asks for. Raises AutosegError for another word."""
    wishes: dict[str, Wish] = {"auto": "auto", "on": "on", "off": "off"}
    if text not in wishes:
        raise AutosegError(f"--compile {text!r} is unknown; use auto, on or off")
    return wishes[text]
