"""Batches on their way to a device: read ahead, cut where memory is short, kept intact."""

import itertools

import numpy as np
import pytest
import torch
from emulated_device import emulated, there
from module_cases import X_, Y_, bn_net, estimate, fingerprint, mlp
from torch import nn
from torch.utils.data import IterableDataset

from sklearn_implicitreg import ImplicitRegularizationCV
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.torch.data import Batch
from sklearn_implicitreg.adapters.torch.moving import ReadAhead
from sklearn_implicitreg.problem.row_models import is_out_of_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
SHORT = {
    "cuda": CUDA,
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:126] not enough memory: you tried to"),
    "linux": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "python": MemoryError(),
}


class Room(nn.Module):
    """A net for which more than so many rows are too much memory."""

    def __init__(self, inner, room, error=CUDA):
        super().__init__()
        self.inner, self.room, self.error, self.sizes = inner, room, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error
        return self.inner(x)


def sizes_of(module, batch_size, X=X_, y=Y_):
    """Rows that pass together, without the few rows that the scale of the gradient is of."""
    problem = adapt(module, Data(X, y), Options(loss="mse", params="all", batch_size=batch_size))
    problem.module.sizes.clear()
    gradient = problem.gradient()
    return problem.module.sizes, gradient


@pytest.mark.parametrize("error", SHORT)
@pytest.mark.parametrize("room", [39, 7, 1])
def test_smaller_parts_have_the_same_sums(room, error):
    model = mlp()
    weight = np.linspace(1, 2, len(X_))
    expected = estimate(model, X_, Y_, weight, family="l2+l1")
    short = Room(model, room, SHORT[error])
    before = fingerprint(model)
    found = estimate(short, X_, Y_, weight, family="l2+l1")
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)
    np.testing.assert_allclose(found.std_err_, expected.std_err_, rtol=1e-8)
    assert fingerprint(model) == before


def test_what_fits_is_kept_for_the_next_batches():
    sizes, gradient = sizes_of(Room(mlp(), 6), batch_size=20)
    # 20 and 10 fail, 5 fit; the scale of the gradient takes a few rows of the first five.
    assert sizes == [20, 10, *[5] * 4, 5, *[5] * 4]
    assert gradient.n_rows == 40


@pytest.mark.parametrize("error", SHORT)
def test_not_one_row(error):
    model = Room(mlp(), 0, SHORT[error])
    before = fingerprint(model)
    words = (
        "memory for the forward and backward pass of 1 row, got .*; use a machine with more memory"
    )
    with pytest.raises(MemoryError, match=words):
        estimate(model, X_, Y_)
    assert fingerprint(model) == before


def test_a_device_may_be_left_for_the_cpu():
    with emulated(), pytest.raises(MemoryError, match="use a larger device, or device='cpu'"):
        estimate(there(Room(mlp(), 0)), X_, Y_)


def test_rows_of_batch_statistics_are_not_cut():
    words = "pass of 20 rows, which pass together, got CUDA out of memory.*a smaller batch_size"
    with pytest.raises(MemoryError, match=words):
        estimate(Room(bn_net(), 19).eval(), X_, Y_, batch_size=20)


def test_families_of_gradients_are_short_of_memory_not_of_derivatives():
    with pytest.raises(MemoryError, match="Expected memory for the passes over the rows, got CUDA"):
        estimate(Room(mlp(), 20), X_, Y_, family="gradient_norm")


def test_families_on_rows_and_searches_say_what_to_do():
    size = {"size": lambda params, batch: batch.outputs.square().mean(1)}
    model = Room(mlp(), 20)
    words = "Expected memory for the passes over the rows, got CUDA out of.*a smaller batch_size"
    with pytest.raises(MemoryError, match=words):
        estimate(model, X_, Y_, family=size)
    with pytest.raises(MemoryError, match=words):
        ImplicitRegularizationCV(model, families=["l2", size], loss="mse").fit(X_, Y_)
    assert estimate(model, X_, Y_, family=size, batch_size=20).coef_.shape == (1,)


def test_other_errors_pass():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ValueError, match="X as the forward of Room takes it.*broken"):
        estimate(Room(mlp(), 3, RuntimeError("broken")), X_, Y_)


class Stream(IterableDataset):
    """Single rows; a full memory of the reader where asked for."""

    def __init__(self, ends=None):
        self.ends = ends

    def __iter__(self):
        for i, row in enumerate(zip(torch.tensor(X_), torch.tensor(Y_), strict=True)):
            if i == self.ends:
                raise MemoryError("of the reader")
            yield row


@pytest.mark.parametrize("batch_size", [7, 20, 40, 100])
def test_reading_ahead_changes_nothing(batch_size):
    """Of a stream, on a device that computes as the CPU does: the same bits."""
    options = Options(loss="mse", params="all", batch_size=batch_size)
    model = mlp()
    expected = list(adapt(model, Data(Stream(), None), options).blocks())
    with emulated():
        found = list(adapt(there(model), Data(Stream(), None), options).blocks())
    assert [b.n_rows for b in found] == [b.n_rows for b in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.loss == other.loss
        assert all(torch.equal(one.sums[n].cpu(), other.sums[n]) for n in other.sums)


def test_errors_of_the_reader_come_in_their_turn():
    with emulated(), pytest.raises(MemoryError, match="of the reader"):
        estimate(there(mlp()), Stream(ends=25), batch_size=5)


def test_the_next_batch_is_read_while_one_is_computed():
    log = []

    def batches():
        for i in range(4):
            log.append(f"read {i}")
            yield Batch(torch.full((2, 1), float(i)), torch.zeros(2), None)

    coming = ReadAhead(batches(), torch.float64, ())
    found = []
    for batch in itertools.islice(coming, 10):
        log.append(f"computing {int(batch.inputs[0])}")
        coming.ahead()
        coming.ahead()
        found.append(batch.inputs.dtype)
        log.append("done")
    assert log[:6] == ["read 0", "computing 0", "read 1", "done", "computing 1", "read 2"]
    assert log[-2:] == ["computing 3", "done"]
    assert found == [torch.float32, *[torch.float64] * 3]


def test_pinned_where_there_is_cuda(monkeypatch):
    """What is read ahead is pinned in the type that the device gets, the user's rows are not."""
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    rows = torch.arange(8.0).reshape(4, 2)
    batches = (Batch((rows[i : i + 2], rows[i : i + 2, 0].long()), None, None) for i in (0, 2))
    coming = ReadAhead(batches, torch.float64, (False, True))
    coming.ahead()
    first, second = coming
    assert [t.dtype for t in pinned] == [torch.float64, torch.int64]
    assert first.inputs == tuple(pinned)
    assert torch.equal(first.inputs[0], rows[:2].double())
    assert second.inputs[0].dtype == torch.float32
    assert pinned[0].data_ptr() != rows.data_ptr()
