"""The formula of multiply-adds against the network itself, counted on tensors without data."""

import pytest

from autoseg.documents.presets.table import network_spec
from autoseg.nets.cost import multiply_adds
from autoseg.rules.network import conv_operations
from autoseg.rules.nnunet import PRESETS, architecture
from autoseg.rules.topology import topology_for


@pytest.mark.parametrize("preset", ["plain", "resenc_m"])
@pytest.mark.parametrize(
    ("patch", "spacing"), [((32.0, 32.0, 32.0), (1.0, 1.0, 1.0)), ((64.0, 64.0), (1.0, 1.0))]
)
def test_operations_by_formula_are_those_of_the_network(preset, patch, spacing):
    topology = topology_for(patch, spacing)
    net = architecture(PRESETS[preset], topology, 2, 3, 8)
    spec = network_spec(preset, 2, 3, net.features, topology.strides, topology.kernels)
    counted = multiply_adds(spec, topology.patch_vox)
    assert conv_operations(net) == pytest.approx(counted, rel=0.02)
