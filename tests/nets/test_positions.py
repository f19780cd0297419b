"""The six mechanisms of the survey literature at each of the four positions of a U-Net.

Attention, inception, residual, dilated, dense, and integrated (one part that combines several), at
encoder, skip, bottleneck and decoder, in 2D and 3D: 48 sentences.
"""

import pytest

from autoseg.documents.networks.sentence import DecoderLevel, Level, Part, Skip, UNetSpec
from autoseg.nets.build import build
from autoseg.nets.network import Network
from tests.nets.contract import check_contract, part, sentence, worded

PLAIN = part("plain")
MECHANISMS = {
    "attention": part("plain", "dual_attention"),
    "inception": part("inception"),
    "residual": part("pair", "residual"),
    "dilated": part({"word": "dilated", "rates": (1, 2)}),
    "dense": part({"word": "dense", "growth": 4, "layers": 2}),
    "integrated": part(
        {"word": "inception_dilated", "rates": (1, 2, 5)}, "squeeze_excite", "residual"
    ),
}
POSITIONS = ("encoder", "skip", "bottleneck", "decoder")


def at(position: str, said: Part, dimensions: int) -> UNetSpec:
    """The plain sentence with another part at one position."""
    plain = sentence(dimensions, PLAIN)
    fields = plain.model_dump(exclude={position})
    if position == "encoder":
        change = tuple(Level(**(level.model_dump() | {"part": said})) for level in plain.encoder)
    elif position == "bottleneck":
        change = Level(**(plain.bottleneck.model_dump() | {"part": said}))
    elif position == "decoder":
        change = tuple(
            DecoderLevel(**(level.model_dump() | {"part": said})) for level in plain.decoder
        )
    else:
        change = Skip(before=(said,), join=worded("concat"))
    return UNetSpec.model_validate({**fields, position: change})


def position_of(name: str, levels: int) -> str:
    """Where in the sentence a parameter of the network belongs."""
    place, index, *rest = name.split(".")
    if place == "encode":
        return "bottleneck" if int(index) == levels - 1 else "encoder"
    if place == "decode":
        return {"skip": "skip", "units": "decoder"}.get(rest[0], "up")
    return place


def shapes(net: Network) -> dict[str, dict[str, tuple[int, ...]]]:
    """Position -> name -> shape of every parameter."""
    found: dict[str, dict[str, tuple[int, ...]]] = {p: {} for p in (*POSITIONS, "up", "head")}
    for name, p in net.named_parameters():
        found[position_of(name, len(net.encode))][name] = tuple(p.shape)
    return found


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_at_every_position(mechanism, position, dimensions):
    plain = shapes(build(sentence(dimensions, PLAIN)))
    found = shapes(check_contract(at(position, MECHANISMS[mechanism], dimensions)))
    assert [p for p in found if found[p] != plain[p]] == [position]


def test_the_plain_part_at_any_position_is_the_plain_sentence():
    plain = sentence(3, PLAIN)
    assert [at(p, PLAIN, 3) == plain for p in POSITIONS] == [True, False, True, True]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_attention_at_the_skip_as_a_join(dimensions):
    gated = shapes(check_contract(sentence(dimensions, PLAIN, skip="attention_gate")))
    plain = shapes(build(sentence(dimensions, PLAIN)))
    assert [p for p in gated if gated[p] != plain[p]] == ["skip"] and plain["skip"] == {}


def test_all_mechanisms_in_one_sentence():
    """A different one at each position, two of them inside the skip."""
    said = MECHANISMS
    spec = at("encoder", said["residual"], 3).model_dump() | {
        "bottleneck": at("bottleneck", said["dilated"], 3).bottleneck,
        "decoder": at("decoder", said["dense"], 3).decoder,
        "skip": Skip(
            before=(said["inception"], said["attention"]),
            join=worded("attention_gate"),
            after=(said["integrated"],),
        ),
    }
    check_contract(UNetSpec.model_validate(spec))
