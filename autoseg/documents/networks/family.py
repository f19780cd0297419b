"""Any network's document: the families, told apart by their field `family`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from autoseg.documents.document import Document
from autoseg.documents.networks.sentence import UNetSpec

NetworkSpec = Annotated[UNetSpec, Field(discriminator=None)]


class _Holder(Document):
    network: NetworkSpec


def parse_network(value: Mapping[str, Any], what: str) -> NetworkSpec:
    """The network in a decoded document. Raises PlanError listing every fault."""
    return _Holder.parse({"network": value}, what).network
