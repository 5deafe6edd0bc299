"""Models on several ranks: the fits of one process over all rows, and errors on every rank."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch.multiprocessing
from rank_cases import CASES, N_RANKS, PLACES, in_one_process, work

EXACT = 1e-12


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, and one."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=N_RANKS)
    ranks = [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(N_RANKS)]
    return ranks, in_one_process()


def same(first, second, rtol=0.0):
    """Assert that what two fits give is the same."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, str) or np.asarray(value).dtype.kind in "OU":
            assert np.array_equal(value, second[name]), name
        else:
            np.testing.assert_allclose(value, second[name], rtol=rtol, atol=0, err_msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", PLACES)
def test_ranks_have_the_same_bits_and_the_numbers_of_one_process(found, place, case):
    ranks, one = found
    if (place, case) not in ranks[0]:
        pytest.skip("partly sharded: as the others")
    same(*(own[place, case] for own in ranks))
    same(ranks[0][place, case], one[case], EXACT)
