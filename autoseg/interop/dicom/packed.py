"""How large is the picture in packed pixels, by their own first bytes: JPEG, JPEG-LS, JPEG 2000."""

NO_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers among those of JPEG's frames (C0 to CF) that mean tables."""

JPEG_LS = 0xF7
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))
SCAN = 0xDA


def size_of(packed: bytes) -> tuple[int, int] | None:
    """(rows, columns) that the packed pixels declare; None where they are of another kind.

    Sources: ISO/IEC 10918-1 B.2.2 and 14495-1 C.2.2 (frame headers), 15444-1 A.5.1.
    """
    if packed[:2] == b"\xff\xd8":
        return _jpeg(packed)
    start = packed.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(packed) < start + 24:
        return None
    right, lower, left, upper = (
        int.from_bytes(packed[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)
    )
    return lower - upper, right - left


def _jpeg(packed: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(packed):
        if packed[at] != 0xFF:
            return None
        marker = packed[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
        elif marker in WITHOUT_LENGTH:
            at += 2
        elif marker == SCAN:
            return None
        elif marker == JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in NO_FRAMES):
            rows, columns = packed[at + 5 : at + 7], packed[at + 7 : at + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big")
        else:
            at += 2 + int.from_bytes(packed[at + 2 : at + 4], "big")
    return None
