"""From a network document to a module: one line for each family of networks."""

from collections.abc import Callable
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.nets.families.classic_unet import EncoderUNet
from autoseg.nets.families.compound import HyperDense, Modalities, Parallel, Serial
from autoseg.nets.families.deeplab import DeepLab
from autoseg.nets.families.fcn import FCN
from autoseg.nets.families.nested import Nested
from autoseg.nets.families.primus import Primus
from autoseg.nets.families.segnet import SegNet
from autoseg.nets.families.swin_unetr import SwinUNETR
from autoseg.nets.families.transfuse import TransFuse
from autoseg.nets.families.transunet import TransUNet
from autoseg.nets.families.unet import UNet
from autoseg.nets.families.unetr import UNETR
from autoseg.nets.network import Network

FAMILIES: dict[str, Callable[[Any], Network]] = {
    "unet": UNet,
    "swin_unetr": SwinUNETR,
    "unetr": UNETR,
    "primus": Primus,
    "nested": Nested,
    "serial": Serial,
    "parallel": Parallel,
    "modalities": Modalities,
    "hyperdense": HyperDense,
    "fcn8s": FCN,
    "segnet": SegNet,
    "deeplab": DeepLab,
    "encoder_unet": EncoderUNet,
    "transunet": TransUNet,
    "transfuse": TransFuse,
}


def build(spec: NetworkSpec) -> Network:
    """The network of a document, freshly initialised by torch's random numbers.

    What it maps to what is said by `Network`. Raises PlanError for a word or a setting that is in
    no vocabulary.
    """
    return FAMILIES[spec.family](spec)
