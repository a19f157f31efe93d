"""Fixtures and options of the whole suite."""

from collections.abc import Iterable
from pathlib import Path

import hypothesis
import pytest
import torch

from cierzo.weights.pull import FetchError, resolve_model

# PyTorch's threads spin while they wait: two of them on a core that others use make tiny products 50 times slower.
torch.set_num_threads(1)

# The same examples in every run, so that nobody's change fails by chance; new ones with --hypothesis-profile=explore.
# A busy machine is no fault of a test's.
_slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("fixed", derandomize=True, suppress_health_check=_slow)
hypothesis.settings.register_profile("explore", derandomize=False, suppress_health_check=_slow)
hypothesis.settings.load_profile("fixed")

_left = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The default model from the user's cache, fetched when it is not there."""
    try:
        return resolve_model(None, progress=False)
    except FetchError as error:
        pytest.skip(str(error))


@pytest.hookimpl(tryfirst=True)  # before -m takes tests away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_left] = [item.nodeid for item in items if item.get_closest_marker("heavy")]


def pytest_report_collectionfinish(config: pytest.Config, items: Iterable[pytest.Item]) -> list[str]:
    """Name the tests that `make test` leaves to `.ci/run`."""
    chosen = {item.nodeid for item in items}
    left = [name for name in config.stash.get(_left, []) if name not in chosen]
    return [f"left to .ci/run ({len(left)}):", *(f"  {name}" for name in left)] if left else []
