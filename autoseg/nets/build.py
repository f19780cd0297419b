"""From a network document to a module: one line for each family of networks."""

from collections.abc import Callable
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.nets.families.unet import UNet
from autoseg.nets.network import Network

FAMILIES: dict[str, Callable[[Any], Network]] = {
    "unet": UNet,
}


def build(spec: NetworkSpec) -> Network:
    """The network of a document, freshly initialised by torch's random numbers.

    What it maps to what is said by `Network`. Raises PlanError for a word or a setting that is in
    no vocabulary.
    """
    return FAMILIES[spec.family](spec)
