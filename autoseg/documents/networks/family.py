"""Any network's document: the families, told apart by their field `family`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from autoseg.documents.document import Document
from autoseg.documents.networks.classic import (
    DeepLabSpec,
    EncoderUNetSpec,
    FCNSpec,
    SegNetSpec,
)
from autoseg.documents.networks.compound import (
    HyperDenseSpec,
    ModalitySpec,
    NestedSpec,
    ParallelSpec,
    SerialSpec,
)
from autoseg.documents.networks.hybrids import TransFuseSpec, TransUNetSpec
from autoseg.documents.networks.sentence import UNetSpec
from autoseg.documents.networks.transformers import PrimusSpec, SwinUNETRSpec, UNETRSpec

NetworkSpec = Annotated[
    UNetSpec
    | NestedSpec
    | SerialSpec
    | ParallelSpec
    | ModalitySpec
    | HyperDenseSpec
    | TransUNetSpec
    | TransFuseSpec
    | SwinUNETRSpec
    | UNETRSpec
    | PrimusSpec
    | FCNSpec
    | SegNetSpec
    | DeepLabSpec
    | EncoderUNetSpec,
    Field(discriminator="family"),
]


class _Holder(Document):
    network: NetworkSpec


def parse_network(value: Mapping[str, Any], what: str) -> NetworkSpec:
    """The network in a decoded document. Raises PlanError listing every fault."""
    return _Holder.parse({"network": value}, what).network
