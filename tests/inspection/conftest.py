"""Pictures are drawn into memory."""

import pytest


@pytest.fixture(autouse=True)
def no_window():
    mpl = pytest.importorskip("matplotlib")
    plt = pytest.importorskip("matplotlib.pyplot")
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")
