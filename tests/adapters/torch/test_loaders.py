"""Loaders whose rows are not the same each time that they are read."""

import itertools

import numpy as np
import pytest
import torch
from module_cases import X_, Y_, estimate, mlp
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import AugmentationWarning, SamplerWarning

SIZE = {"size": lambda params, batch: batch.outputs.square().mean(1)}  # reads the rows once more
WARNS = "ignore:The first batch differs"


class Changing(IterableDataset):
    """Rows of which another part, or another order, comes at each reading after the second."""

    def __init__(self, rows_of):
        self.rows_of, self.n_read = rows_of, 0

    def __iter__(self):
        self.n_read += 1  # the first batch is read twice before
        for i in self.rows_of(max(0, self.n_read - 3)):
            yield torch.tensor(X_[i]), torch.tensor(Y_[i])


ROWS = {
    "ends early": (lambda n: range(40 - 8 * n), "40 rows and then 32;"),
    "drops rows": (
        lambda n: [i for i in range(40) if i != 30 * n or n == 0],
        "40 rows and then 39",
    ),
    "grows": (lambda n: [*range(40), *range(n)], "40 rows and then 41"),
    "shuffles": (lambda n: [*range(16), *np.roll(np.arange(16, 40), n)], "40 rows twice, with"),
    "other rows": (lambda n: [*range(39), 39 - n], "40 rows twice, with other numbers"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_differ_between_two_passes(case):
    rows_of, words = ROWS[case]
    with pytest.raises(ValueError, match=rf"same rows each time.* got {words}.*give arrays, a Dat"):
        estimate(mlp(), Changing(rows_of), family=SIZE, batch_size=8)


@pytest.mark.parametrize("case", ROWS)
def test_one_pass_has_nothing_to_compare(case):
    assert estimate(mlp(), Changing(ROWS[case][0]), family="l2", batch_size=8).coef_.shape == (1,)


def test_batches_of_a_loader_without_a_length():
    class Batches(IterableDataset):
        n_read = 0

        def __iter__(self):
            type(self).n_read += 1
            for at in range(0, 40 - 8 * (self.n_read > 3), 8):
                yield torch.tensor(X_[at : at + 8]), torch.tensor(Y_[at : at + 8])

    with pytest.raises(ValueError, match="40 rows and then 32"):
        estimate(mlp(), DataLoader(Batches(), batch_size=None), family=SIZE)


@pytest.mark.filterwarnings(WARNS)
def test_streams_that_shuffle_have_the_same_rows():
    """Of the mean over all rows their order does not matter: counted, and not compared."""
    orders = [np.random.default_rng(i).permutation(40) for i in range(9)]
    stream = Changing(orders.__getitem__)
    stream.rows_of = lambda n: orders[stream.n_read]
    expected = estimate(mlp(), X_, Y_, family=SIZE)
    torch.manual_seed(0)
    with pytest.warns(AugmentationWarning):
        found = estimate(mlp(), stream, family=SIZE, batch_size=8)
    assert found.coef_.shape == expected.coef_.shape
    stream.rows_of = lambda n: orders[stream.n_read][: 40 - stream.n_read]
    with (
        pytest.warns(AugmentationWarning),
        pytest.raises(ValueError, match="rows and then"),
    ):
        stream.n_read = 0
        estimate(mlp(), stream, family=SIZE, batch_size=8)


def test_sampler_and_drop_last_of_a_loader_do_not_matter():
    """The data set is read in its own order, whatever the loader would leave out."""
    model, data = mlp(), TensorDataset(torch.tensor(X_), torch.tensor(Y_))
    expected = estimate(model, X_, Y_, family=SIZE)
    loader = DataLoader(data, batch_size=7, shuffle=True, drop_last=True)
    np.testing.assert_allclose(estimate(model, loader, family=SIZE).coef_, expected.coef_, 1e-12)


WHOLE = TensorDataset(torch.tensor(X_), torch.tensor(Y_))
LEFT_OUT = {
    "subset": ({"sampler": SubsetRandomSampler(range(10))}, "has 10 of the 40 rows.*Subset"),
    "list": ({"sampler": list(range(30))}, "has 30 of the 40 rows.*Subset"),
    "batches": (
        {"batch_sampler": BatchSampler(SubsetRandomSampler(range(10)), 5, False)},
        "has 10 of the 40 rows.*Subset",
    ),
    "weighted": (
        {"sampler": WeightedRandomSampler(torch.arange(40.0), 40)},
        "draws some rows more often than others.*sample_weight",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_samplers_that_leave_rows_out(case):
    """As for a validation split: the rows are not those of the training, or not as often."""
    how, text = LEFT_OUT[case]
    model = mlp()
    with pytest.warns(SamplerWarning, match=text):
        found = estimate(model, DataLoader(WHOLE, **how))
    np.testing.assert_allclose(found.coef_, estimate(model, X_, Y_).coef_, 1e-12)


@pytest.mark.parametrize(
    "sampler",
    [
        RandomSampler(WHOLE, num_samples=10),
        RandomSampler(WHOLE, replacement=True),
        DistributedSampler(WHOLE, num_replicas=2, rank=0),
        WeightedRandomSampler(torch.ones(40), 40),
    ],
    ids=["a part of each epoch", "bootstrap", "rank", "equal weights"],
)
def test_samplers_of_all_rows(sampler):
    model = mlp()
    found = estimate(model, DataLoader(WHOLE, sampler=sampler))
    np.testing.assert_allclose(found.coef_, estimate(model, X_, Y_).coef_, 1e-12)


def test_what_cannot_be_read_or_joined():
    with pytest.raises(TypeError, match="Expected X that can be read several times, got a gener"):
        estimate(mlp(), (row for row in X_), Y_)
    batches = [{"x": torch.ones(n, 3), "labels": torch.ones(n)} for n in (4, 4, 1)]
    with pytest.raises(ValueError, match="Expected rows of one shape, got others.*batch_size=None"):
        estimate(mlp(), batches)


def test_padding_by_batch_is_no_difference():
    """Batches of other sizes are padded otherwise."""

    class Words(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return torch.full((1 + i % 5,), float(i + 1)).double(), torch.tensor(Y_[i])

    def collate(rows):
        words = torch.nn.utils.rnn.pad_sequence([x for x, _ in rows], True, -1.0)
        padded = torch.nn.functional.pad(words, (0, 5 - words.shape[1]), value=-words.shape[1])
        return padded, torch.stack([y for _, y in rows])

    loader = DataLoader(Words(), batch_size=8, collate_fn=collate)
    problem = adapt(mlp(), Data(loader, None), Options(loss="mse", params="all"))
    for n_blocks in (1, 20, 1):
        assert sum(block.n_rows for block in problem.blocks(n_blocks)) == 40


class Endless(IterableDataset):
    """Rows that never end, with the length of an epoch, or another guess of it."""

    def __init__(self, length, n_rows=None):
        self.length, self.n_rows = length, n_rows

    def __len__(self):
        return self.length

    def __iter__(self):
        numbers = itertools.count() if self.n_rows is None else range(self.n_rows)
        return ((torch.tensor(X_[i % 40]), torch.tensor(Y_[i % 40])) for i in numbers)


def test_a_stream_that_does_not_end_is_an_error():
    with pytest.raises(ValueError, match="Expected a stream that ends, got more than 80 items"):
        estimate(mlp(), DataLoader(Endless(40), batch_size=8), family="l2")


def test_the_length_of_a_stream_may_be_a_guess():
    net = mlp()
    est = estimate(net, DataLoader(Endless(30, n_rows=40), batch_size=8), family="l2")
    whole = estimate(net, X_, Y_, family="l2")
    np.testing.assert_allclose(est.coef_, whole.coef_, rtol=1e-12)


def test_a_data_set_without_a_length():
    class Unmeasured(Dataset):
        def __getitem__(self, i):
            return torch.tensor(X_[i]), torch.tensor(Y_[i])

    with pytest.raises(TypeError, match="Expected a data set with a length, got Unmeasured"):
        estimate(mlp(), Unmeasured(), family="l2")


def test_a_list_of_batches_names_the_loader_that_reads_it():
    net = mlp()
    batches = [(torch.tensor(X_[i : i + 10]), torch.tensor(Y_[i : i + 10])) for i in (0, 10, 20)]
    with pytest.raises(TypeError, match=r"got a list of rows or batches; give DataLoader\(rows"):
        estimate(net, batches, family="l2")
    loaded = estimate(net, DataLoader(batches, batch_size=None), family="l2")
    whole = estimate(net, X_[:30], Y_[:30], family="l2")
    np.testing.assert_allclose(loaded.coef_, whole.coef_, rtol=1e-12)
