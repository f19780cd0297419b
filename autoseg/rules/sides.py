"""Which structures are the left and the right one of a pair, and may a patch then be mirrored?

A mirrored left kidney is a right one: where both have a name, flips along the left-right axis would
teach a network wrong names. A structure that exists once (a left atrium without a right one) is
mirrored as any other.
"""

import re
from collections.abc import Sequence

from autoseg.rules.axes import STORED
from autoseg.rules.decision import Decision

SIDES = (
    ("left", "right"), ("l", "r"), ("lh", "rh"), ("lt", "rt"), ("lhs", "rhs"),
    ("sin", "dex"), ("sin", "dx"), ("sin", "dext"), ("sinister", "dexter"), ("sinistra", "dextra"),
    ("sinistrum", "dextrum"), ("sinistro", "destro"), ("sinistra", "destra"), ("sx", "dx"),
    *((f"link{end}", f"recht{end}") for end in ("s", "e", "er", "es", "en")), ("li", "re"),
    ("gauche", "droite"), ("gauche", "droit"),
    ("izquierdo", "derecho"), ("izquierda", "derecha"), ("izq", "der"),
    ("esquerdo", "direito"), ("esquerda", "direita"),
)  # fmt: skip
"""(left, right) in English, anatomical Latin, Italian, German, French, Spanish and Portuguese."""

LEFT = {left for left, _ in SIDES}
RIGHT = {right for _, right in SIDES}

WORD = re.compile(r"[^\W\d_]+|\d+")
"""A run of letters, or of digits."""
CAMEL = re.compile(r"(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-Ö])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Between the words of kidneyLeft and of LKidney."""
GLUED = re.compile(r"^(left|right)(?=[a-z]{3})")
"""A side at the head of a word: leftkidney. It counts only if rightkidney is there, too."""

SHOWN = 2
"""So many pairs are named in a reason."""


def paired_labels(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(left, right) indices of the names that say the same but for the side, by the left index."""
    split = [_words(name) for name in names]
    found = []
    for i, (rest, sides) in enumerate(split):
        for j, (other_rest, other_sides) in enumerate(split):
            if i == j or rest != other_rest or not sides or len(sides) != len(other_sides):
                continue
            # several sides in a name (left lung, left lobe) must all be the other ones
            if all(pair in SIDES for pair in zip(sides, other_sides, strict=True)):
                found.append((i, j))
    return tuple(found)


def _words(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a name that say no side, and those that do, in lower case."""
    rest, sides = [], []
    for word in WORD.findall(CAMEL.sub(" ", name)):
        word = word.lower()
        if word in LEFT or word in RIGHT:
            sides.append(word)
            continue
        head = GLUED.match(word)
        if head:
            sides.append(head[0])
            word = word[head.end() :]
        rest.append(word)
    return tuple(rest), tuple(sides)


def mirror_axes(
    axes: str,
    dimensions: int,
    names: Sequence[str],
    allowed: Sequence[int],
    *,
    flat_images: bool = False,
    turned: Sequence[int] = (),
) -> Decision[tuple[int, ...]]:
    """Those of the `allowed` axes of a patch along which it may be mirrored; "" if nothing changed.

    `axes` are the plan's; a patch of two `dimensions` lies in its axes 1 and 2. `turned` are the
    patch's axes between which it is turned by any angle: a flip of one and half a turn are a flip
    of the other. `flat_images` says that the images themselves are 2D.
    """
    pairs = paired_labels(names)
    if not pairs:
        return Decision(tuple(allowed), "")
    told = pairs_told(names, pairs)
    if flat_images:
        return Decision((), f"{told}, and a 2D image has no known side: nothing is mirrored.")
    if axes.startswith(STORED):
        why = f"{told}, and axes that are {STORED!r} have no known side: nothing is mirrored."
        return Decision((), why)
    side = next(i for i, letter in enumerate(axes) if letter in "LR") - (3 - dimensions)
    if side < 0:
        why = f"{told}, which cannot be told apart within slices from left to right."
        return Decision(tuple(allowed), f"{why} Such slices are mirrored as any others.")
    left_out = {side, *(turned if side in turned else ())}
    why = f"{told}: not mirrored along axis {side}, which runs from side to side"
    others = sorted(left_out.intersection(allowed) - {side})
    if others:
        also = " and ".join(map(str, others))
        why += f", nor along axis {also}, since that and half a turn come to the same"
    return Decision(tuple(a for a in allowed if a not in left_out), f"{why}.")


def pairs_told(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    """`kidney left / kidney right and 3 more pairs differ only in their side`."""
    shown = ", ".join(f"{names[i]} / {names[j]}" for i, j in pairs[:SHOWN])
    more = len(pairs) - SHOWN
    rest = f" and {more} more pair{'s' * (more > 1)}" if more > 0 else ""
    return f"{shown}{rest} differ only in their side"
