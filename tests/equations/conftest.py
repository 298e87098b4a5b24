import pytest

from tests.equations.libraries import LIBRARIES


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.name)
def library(request):
    return request.param
