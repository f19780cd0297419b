"""Measure autoseg beside nnU-Net, part by part, and write docs/benchmarks.md.

    python -m bench.run                       # every part; what this commit has is kept
    python -m bench.run resample export       # these parts
    python -m bench.run export --only labels5 # these rows of them
    python -m bench.run --quick               # small sizes, one pair each, into .bench/quick
    python -m bench.run --page                # the page alone

nnU-Net lives in an environment of its own (`make bench-env`, or AUTOSEG_BENCH_NNUNET); without it
autoseg is measured alone. Each row is kept as soon as it is measured, in bench/results/<part>.json,
and stands for this commit on this machine.
"""

import argparse
import os
import sys
import time
from pathlib import Path


def main() -> None:
    asked = _asked()
    if asked.quick:
        # before anything reads where results go
        os.environ.setdefault("AUTOSEG_BENCH_RESULTS", str(_root() / "quick" / "results"))
    from bench.page import PAGE, write_page
    from bench.pairs import duration, run_part
    from bench.parts import PARTS
    from bench.sides import rival_is_there

    unknown = set(asked.parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"there is no part {', '.join(sorted(unknown))}; {', '.join(PARTS)}")
    if not rival_is_there():
        _say("nnU-Net is not installed (make bench-env): autoseg is measured alone")
    page = _root() / "quick" / "benchmarks.md" if asked.quick else PAGE
    for name in () if asked.page else asked.parts or PARTS:
        start = time.monotonic()
        rows = PARTS[name](asked.quick)
        if not rows:
            _say(f"{name}: not measured: what it needs is not there")
        pairs = asked.times or (1 if asked.quick else None)
        run_part(
            name, rows, pairs, redo=asked.redo, say=_say, only=asked.only, lacking=asked.lacking
        )
        _say(f"{name}: took {duration(time.monotonic() - start)}")
        write_page(page)
    if asked.page:
        write_page(page)
    _say(f"written: {page}")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="default: all")
    parser.add_argument(
        "--times", type=int, help="pairs of runs (default: each row's own number; 1 with --quick)"
    )
    parser.add_argument("--only", nargs="+", default=[], help="rows of the parts, by name")
    parser.add_argument("--redo", action="store_true", help="measure again what is kept")
    parser.add_argument(
        "--lacking", action="store_true", help="keep what was measured at other commits, too"
    )
    parser.add_argument("--quick", action="store_true", help="try everything within minutes")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    return parser.parse_args()


def _root() -> Path:
    """`bench.places.ROOT`, which must not be imported yet: it brings RESULTS with it."""
    beside = Path(__file__).resolve().parent.parent / ".bench"
    return Path(os.environ.get("AUTOSEG_BENCH_ROOT", beside))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
