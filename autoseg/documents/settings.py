"""Values that a person gives on the command line: `--set key=value`, durations, dotted keys."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.errors import AutosegError

UNITS_S = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


def seconds_of(text: str) -> float:
    """`20min`, `1h30m`, `90s`, `2h` in seconds. Raises AutosegError for anything else."""
    compact = text.strip().lower()
    parts = DURATION.findall(compact)
    rebuilt = "".join(number + unit for number, unit in parts)
    if not parts or rebuilt != compact.replace(" ", "") or any(u not in UNITS_S for _, u in parts):
        raise AutosegError(f"{text!r} is no duration; write 90s, 20min, 2h or 1h30min")
    total = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    if total <= 0:
        raise AutosegError(f"the duration {text!r} must be longer than nothing")
    return total


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """`128,128,96` or `128x128x96` as numbers. Raises AutosegError for anything else."""
    parts = re.split(r"\s*[,x×]\s*", text.strip())
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise AutosegError(f"{what} {text!r}: give whole numbers, as 128,128,128")
    return tuple(int(part) for part in parts)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=0.003", "patch_vox=[32,64,64]"]` as a mapping; values are JSON, else text."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise AutosegError(f"--set {setting!r} is no key=value, as in --set train.lr=0.003")
        if key.strip() in parsed:
            raise AutosegError(f"--set gives {key.strip()!r} twice")
        try:
            parsed[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key.strip()] = text
    return parsed


def patched(value: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a decoded document with dotted keys set; unknown keys are told when it is parsed.

    Raises AutosegError if a key leads through something that is no object.
    """
    result: dict[str, Any] = json.loads(json.dumps(value))
    for dotted, new in changes.items():
        *path, last = dotted.split(".")
        here: Any = result
        for step in path:
            if isinstance(here, list) and step.isdigit() and int(step) < len(here):
                here = here[int(step)]
            elif isinstance(here, dict):
                here = here.setdefault(step, {})
            else:
                raise AutosegError(f"--set {dotted}: {step!r} is not inside anything that has keys")
        if isinstance(here, list) and last.isdigit() and int(last) < len(here):
            here[int(last)] = new
        elif isinstance(here, dict):
            here[last] = new
        else:
            raise AutosegError(f"--set {dotted}: {last!r} is not inside anything that has keys")
    return result
