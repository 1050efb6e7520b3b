"""What tests of training share."""

import pytest
from quick_runs import quick_runs


@pytest.fixture(scope="module")
def quick():
    """The runs of a file have no charts, and few points in a validation."""
    with quick_runs:
        yield
