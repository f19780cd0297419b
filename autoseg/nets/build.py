"""From a network document to a module: one line for each family of networks."""

from collections.abc import Callable

from torch import nn

from autoseg.documents.plan import NetworkSpec
from autoseg.nets.unet import UNet

FAMILIES: dict[str, Callable[[NetworkSpec], nn.Module]] = {"unet": UNet}


def build(spec: NetworkSpec) -> nn.Module:
    """The network of a plan, freshly initialised by torch's random numbers.

    It maps an image (B, C, *S) to a list of logits, finest first: all supervised levels while
    training, only the finest in evaluation. `supervision_strides` names their grids. Raises
    PlanError for a word that is in no vocabulary.
    """
    return FAMILIES[spec.family](spec)
