"""Which precision do the networks of a model compute in, where they predict?

The one that they were trained in, which is also what they were validated in: 16 bits on a card are
as good as float32 and several times faster. Processors compute float32, but where the networks were
trained in bfloat16 on one. `--precision` asks for another.
"""

import logging

import torch

from autoseg.device import is_card
from autoseg.documents.model import Member, Precision
from autoseg.learn.cores import bfloat16_works
from autoseg.learn.precision import resolved_precision

log = logging.getLogger(__name__)


def precision_on(device: torch.device, member: Member, asked: Precision | None = None) -> Precision:
    """The precision of a member's networks on a device; `asked` goes before the trained one.

    A card that cannot multiply bfloat16 computes float16 in its place, and says so. Raises
    AutosegError where a processor cannot compute what is asked.
    """
    if is_card(device) or asked is not None:
        precision, warning = resolved_precision(asked or member.precision, device, explicit=True)
        if warning:
            log.warning("%s: %s", member.title, warning)
        return precision
    # a layout for processors is known where it was trained on one
    here = member.precision == "bfloat16" and "cpu" in member.layouts
    return "bfloat16" if here and bfloat16_works() else "float32"
