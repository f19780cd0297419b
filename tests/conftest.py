"""What every test may use: the real datasets, where a developer has them."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"

# A busy machine is no failure, and the check of a change must say the same when it is run again.
settings.register_profile("autoseg", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("autoseg")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets beside the checkout; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return REAL_DATA
