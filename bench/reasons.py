"""Why a target is missed, where that is known; the page says it of those that are missed."""

from bench.pairs import FASTEST, HALF, OURS

SAME_CONVOLUTIONS = (
    "Both programs call the same convolutions of oneDNN in the same layout, and these are 83 % of "
    "the step (profiler, one thread): were all the rest free, the ratio would be 1/1.2. "
)
CHANNELS_LAST = (
    "What is chosen is the channels-last layout, in which the same convolutions of oneDNN alone "
    "take 0.61 of the whole step in the contiguous layout, which is nnU-Net's (profiler, one "
    "thread): 1/1.6 is what would be left if norms, joins, loss and optimiser were free. The step "
    "already comes near the speed of convolutions alone on this machine (see the limits below). "
)
SLOW_HALF = (
    "Half precision pays only with matrix units (AMX); where a processor announces them and does "
    "not let them be used, oneDNN must be kept to the bf16 instructions of AVX-512, which are "
    "slower here than its float32."
)

REASONS: dict[tuple[str, str, str, str], str] = {
    ("step", "hippocampus", OURS, "wall_s"): SAME_CONVOLUTIONS,
    ("step", "hippocampus", FASTEST, "wall_s"): CHANNELS_LAST + SLOW_HALF,
    ("predict", "hippocampus", HALF, "wall_s"): SLOW_HALF,
}
"""(part, row, side, measure) -> why."""


def reason(part: str, row: str, side: str, measure: str) -> str:
    found = REASONS.get((part, row, side, measure), "")
    return found.strip() or "The reason is not known."
