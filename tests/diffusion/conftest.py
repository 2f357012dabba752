"""What several of these files need."""

import pytest
from jaxtyping import config as annotations


@pytest.fixture
def unchecked():
    """Leaves annotations unchecked, where what jaxdl itself says of wrong shapes is tested."""
    annotations.update("jaxtyping_disable", True)
    yield
    annotations.update("jaxtyping_disable", False)
