"""The small data set that the tests of data read in many formats."""

import pytest
from data.cifar_archives import small_cifar10


@pytest.fixture(scope="session")
def data():
    return small_cifar10()
