"""One part of `make card`, in a process of its own: a row is kept as soon as it is there."""

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from bench.card import kept
from bench.card.parts import PARTS, Asked


def work(part: str, path: Path, asked: Asked) -> kept.Document:
    """All rows of a part that are not kept yet; a failure is written down and not raised."""
    document = kept.read(path, part) | {"state": "running", "error": None}
    document["rows"] = [row for row in document["rows"] if not row.get("failed")]
    kept.write(path, document)
    asked = Asked(
        asked.device, asked.dry, frozenset(r["key"] for r in document["rows"]), asked.until,
        asked.clock,
    )  # fmt: skip
    try:
        module = importlib.import_module(f"bench.card.{part}")
        for row in module.rows(asked):
            document["rows"].append(row)
            document["summary"] = module.summary(document["rows"])
            kept.write(path, document)
        document["state"] = "done"
    except Exception:  # whatever it is, the other parts go on
        document |= {"state": "failed", "error": traceback.format_exc()[-6000:]}
    kept.write(path, document)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    until = time.time() + given.seconds
    found = work(given.part, given.path, Asked(given.device, given.dry, until=until))
    sys.exit(0 if found["state"] == "done" else 1)


if __name__ == "__main__":
    main()
