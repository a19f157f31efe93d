"""Tests of the native kernels run on every instruction set that is here, and with several numbers of threads."""

from collections.abc import Iterator

import pytest

from cierzo.ops import machine
from support.kernels import ISAS, kernels


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert kernels is not None
    before = kernels.isa()
    kernels.use(request.param)
    yield request.param
    kernels.use(before)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    assert kernels is not None
    kernels.set_threads(request.param)
    yield request.param
    kernels.set_threads(machine().threads)
