"""Measure what only a card can tell, in at most eight minutes.

    python -m bench.card --out FOLDER                     # on a machine with a card
    python -m bench.card --out FOLDER --parts memory      # some of it
    python -m bench.card --out FOLDER --dry               # tries the program, without a card

Parts that are done in FOLDER are kept, so that a second call goes on. Packages that are missing are
taken from .card/wheels, which `make card-pack` fills where there is a network.
"""

import argparse
import tempfile
from pathlib import Path

from bench.card.parts import PARTS, SECONDS
from bench.card.runner import process, run
from bench.card.wheels import environment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and page")
    parser.add_argument("--parts", nargs="*", default=[], choices=[p.name for p in PARTS])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--device", default=None, help="cuda or cuda:1")
    parser.add_argument("--dry", action="store_true", help="small sizes, on the CPU")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as site:
        device = given.device or ("cpu" if given.dry else "cuda")
        launch = process(environment(Path(site)), device, given.dry)
        run(given.out, launch, parts=given.parts, seconds=min(given.seconds, SECONDS))
    print(f"{given.out / 'card.md'}")


if __name__ == "__main__":
    main()
