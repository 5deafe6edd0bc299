"""What every test relies on: a fixed seed, one thread per worker, CUDA tests only with CUDA."""

import os

import numpy as np
import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    collect_ignore = ["fuzz"]
else:
    # The suite draws the same few examples each time, `make fuzz` draws many others.
    _COMMON = {
        "deadline": None,
        "database": None,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
    }
    settings.register_profile("suite", max_examples=14, derandomize=True, **_COMMON)
    settings.register_profile("fuzz", max_examples=480, print_blob=True, **_COMMON)
    settings.load_profile("suite")


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def seed():
    """Same random numbers in a test whether it runs alone or in the suite."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sm():
    """statsmodels.api; what is compared with it is skipped where it is not installed."""
    return pytest.importorskip("statsmodels.api")
