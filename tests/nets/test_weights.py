"""Weight files: by name into 2D and 3D encoders, refused with reasons, never run."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from autoseg.documents.presets.table import network_spec
from autoseg.errors import AutosegError
from autoseg.nets.build import build
from autoseg.nets.families.encoders.table import ENCODERS
from autoseg.nets.kit import Kit
from autoseg.nets.weights import load_encoder, read_weights
from tests.nets.test_encoders import encoder, lived_in, norm_for

NAMES = [name for name in ENCODERS if name != "resnet101"]
SCALE = 0.125


def network(preset, dimensions=2, channels=3, levels=4, features=4):
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    strides = [ones] + [twos] * (levels - 1)
    return build(network_spec(preset, channels, 2, [features] * levels, strides, [threes] * levels))


@pytest.fixture
def published(tmp_path):
    """A small ResNet-34 with its classifier, as a safetensors file."""
    state = lived_in(encoder("resnet34", scale=SCALE)).state_dict()
    state |= {"fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)}
    path = tmp_path / "resnet34.safetensors"
    save_file(state, path)
    return path


def test_safetensors_go_into_a_networks_encoder(published):
    net = network("unet_resnet34")
    match = load_encoder(net, published)
    assert match.matched_share == 1
    assert match.missing == match.inflated == ()
    assert match.unexpected == ("fc.bias", "fc.weight")
    given = read_weights(published)
    for name, tensor in net.encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, given[name]), name
    assert not torch.equal(given["bn1.running_mean"], torch.zeros(8))
    assert str(match) == (
        "100.0% of its numbers taken, 0 kernels made 3D, 0 names left as they were, "
        "2 in the file unused"
    )


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {
            "model": {f"net.encoder.{k}": v for k, v in state.items()},
            "rate": {"a": 1},
        },
    ],
)
def test_a_torch_state_dict_serves_behind_any_prefix(tmp_path, wrapped):
    given = lived_in(encoder("mobilenet_v3_large", scale=SCALE))
    path = tmp_path / "weights.pth"
    torch.save(wrapped(given.state_dict()), path)
    net = network("unet_mobilenet_v3")
    assert load_encoder(net, path).matched_share == 1
    x = torch.randn(1, 3, 32, 32)
    four_levels = encoder("mobilenet_v3_large", scale=SCALE, levels=4)
    four_levels.load_state_dict(given.state_dict())
    with torch.no_grad():
        assert torch.equal(net.eval().encoder(x)[-1], four_levels.eval()(x)[-1])


# --- inflation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_inflated_encoder_sees_in_a_pile_of_equal_slices_what_the_flat_one_sees(tmp_path, name):
    norm = norm_for(name)
    flat = lived_in(encoder(name, scale=SCALE, norm=norm, levels=4))
    path = tmp_path / "flat.safetensors"
    save_file(flat.state_dict(), path)
    # slices are halved as well, at two of the reductions
    deep = encoder(
        name, 3, scale=SCALE, norm=norm, strides=[(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 2, 2)]
    )
    match = load_encoder(deep.eval(), path)
    assert match.matched_share == 1
    kernels = [k for k, v in flat.state_dict().items() if v.ndim == 4]
    assert sorted(match.inflated) == sorted(kernels)
    x = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        wanted, found = flat(x), deep(x[:, :, None].expand(-1, -1, 4, -1, -1))
    for a, b in zip(wanted, found, strict=True):
        assert b.shape[2] in (4, 2, 1)
        torch.testing.assert_close(
            b, a[:, :, None].expand_as(b), rtol=1e-4, atol=1e-5 * float(a.abs().max())
        )


def test_the_mean_inflation_loses_response_at_the_ends_alone(tmp_path):
    flat = lived_in(encoder("vgg16", scale=SCALE, norm="none", levels=1))
    path = tmp_path / "flat.safetensors"
    save_file(flat.state_dict(), path)
    deep = encoder("vgg16", 3, scale=SCALE, norm="none", levels=1)
    load_encoder(deep, path, inflation="mean")
    given, made = flat.features[0], deep.features[0]
    torch.testing.assert_close(made.weight.sum(2), given.weight)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        wanted, found = given(x), made(x[:, :, None].expand(-1, -1, 5, -1, -1))
    for plane in (1, 2, 3):
        torch.testing.assert_close(found[:, :, plane], wanted, rtol=1e-4, atol=1e-5)
    bias = given.bias[:, None, None]
    torch.testing.assert_close(found[:, :, 0] - bias, (wanted - bias) * 2 / 3, rtol=1e-4, atol=1e-5)


def test_flat_kernels_of_a_plan_take_the_flat_weights_as_they_are(tmp_path, published):
    net = encoder("resnet34", 3, scale=SCALE, strides=[(1, 1, 1), (1, 2, 2)],
                  kernels=[(1, 3, 3), (1, 3, 3)])  # fmt: skip
    assert load_encoder(net, published).matched_share == 1
    assert torch.equal(net.conv1.weight[:, :, 0], read_weights(published)["conv1.weight"])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_equal_channels_get_the_published_response(tmp_path, published, channels):
    flat = encoder("resnet34", scale=SCALE)
    load_encoder(flat, published)
    net = encoder("resnet34", channels=channels, scale=SCALE)
    assert load_encoder(net, published).matched_share == 1
    grey = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        wanted = flat.eval()(grey.expand(-1, 3, -1, -1))
        found = net.eval()(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(found[-1], wanted[-1], rtol=1e-3, atol=1e-4)


def test_other_norms_take_scale_and_shift_and_leave_the_statistics(published):
    net = encoder("resnet34", scale=SCALE, norm="instance")
    match = load_encoder(net, published)
    assert match.matched_share == 1
    assert "bn1.running_mean" in match.unexpected
    assert torch.equal(net.bn1.weight, read_weights(published)["bn1.weight"])


# --- what does not fit, and what is refused --------------------------------------------------------


def unchanged(net, path, saying):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(AutosegError, match=saying):
        load_encoder(net, path)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_other_widths_are_explained(published):
    unchanged(
        network("unet_resnet34", features=8),
        published,
        r"0\.0% of its numbers match .* 99% must; 'conv1.weight' is 16x3x7x7 in the network and "
        r"8x3x7x7 in the file; published weights need the published widths",
    )


def test_other_names_are_explained(tmp_path):
    state = lived_in(encoder("vgg16", scale=SCALE, norm="none")).state_dict()
    path = tmp_path / "vgg16.safetensors"
    save_file(state, path)
    unchanged(
        encoder("vgg16", scale=SCALE, norm="batch"),
        path,
        "'features.1.weight' is not in the file, where the nearest name is 'features.",
    )


@pytest.mark.parametrize(
    ("without", "enough"), [("bn1.bias", True), ("layer4.2.conv2.weight", False)]
)
def test_a_little_may_be_missing(tmp_path, published, without, enough):
    state = read_weights(published)
    del state[without]
    path = tmp_path / "part.safetensors"
    save_file(state, path)
    net = encoder("resnet34", scale=SCALE)
    if not enough:
        unchanged(net, path, f"'{without}' is not in the file, where the nearest name is 'layer4")
        return
    before = net.bn1.bias.clone()
    match = load_encoder(net, path)
    assert match.missing == ("bn1.bias",)
    assert 0.99 < match.matched_share < 1
    assert torch.equal(net.bn1.bias, before)


class Mischief:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    held = {"conv1.weight": torch.ones(1), "x": Mischief(str(trace))}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    unchanged(encoder("resnet34", scale=SCALE), path, "more than tensors.*can run code")
    path.write_bytes(pickle.dumps(held))
    unchanged(encoder("resnet34", scale=SCALE), path, "nor a weight file of torch")
    assert not trace.exists()


def test_the_older_format_of_torch_serves(tmp_path):
    state = lived_in(encoder("resnet34", scale=SCALE)).state_dict()
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    net = encoder("resnet34", scale=SCALE)
    assert load_encoder(net, path).matched_share == 1
    assert torch.equal(net.layer4[2].conv2.weight, state["layer4.2.conv2.weight"])


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_and_scrambled_files_are_explained(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(20), "b": torch.ones(3)}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    whole = path.read_bytes()
    refused = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        at, byte, cut = (int(torch.randint(n, (), generator=generator)) for n in
                         (len(whole), 256, 2))  # fmt: skip
        path.write_bytes(whole[:at] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :])
        try:
            read_weights(path)
        except AutosegError as error:
            refused += "a.pth" in str(error)
    assert refused >= 30


@pytest.mark.parametrize(
    ("name", "content", "saying"),
    [
        ("a.safetensors", b"\x00" * 5, "no safetensors file"),
        ("a.pth", b"", "nor a weight file of torch"),
        ("a.pth", b"junk", "nor a weight file of torch"),
        ("a.pth", b"PK\x03\x04 not a zip", "is damaged"),
        ("a.pth", None, "there is no weight file"),
    ],
)
def test_damaged_and_missing_files_are_explained(tmp_path, name, content, saying):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AutosegError, match=saying):
        read_weights(path)


@pytest.mark.parametrize("held", [{"epoch": 3}, [1, 2], {"counts": torch.arange(3)}])
def test_a_file_without_tensors_by_name_is_explained(tmp_path, held):
    path = tmp_path / "a.pth"
    torch.save(held, path)
    with pytest.raises(AutosegError, match="holds no tensors by name"):
        read_weights(path)


def test_a_network_without_encoder_is_explained(published):
    with pytest.raises(AutosegError, match="no encoder that weight files are known for"):
        load_encoder(network("plain"), published)
    with pytest.raises(AutosegError, match="no encoder"):
        load_encoder(Kit((3, 3)).conv(3, 4), published)
