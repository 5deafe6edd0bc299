"""Trainings that are recorded on several ranks, and the same in one process."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.distributed as dist
from skorch import NeuralNetRegressor
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, mse_loss

from sklearn_implicitreg import ImplicitRegularizationEstimator, record
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties import ActivationL2, Callables
from sklearn_implicitreg.trajectory import ContinueTraining

N_EPOCHS, N_STEPS = 3, 3
# Rows of two ranks; batches of different sizes make each step a mean of their means.
EVEN, UNEVEN = (slice(0, 18), slice(18, 36)), (slice(0, 11), slice(11, 36))
NUMBERS = ("coef_", "std_err_", "conf_int_", "r2_", "cosine_", "n_equations_", "verdict_")


def rows():
    """X and y of all ranks."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(36, 5, generator=generator).double()
    return X, torch.tanh(X.sum(1, keepdim=True)) + 0.3 * torch.randn(36, 1, generator=generator)


def net():
    """A net whose tensors do not divide by the ranks."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


class Training:
    """A run on the rows of a rank, or of one process on those of all, whose steps are recorded."""

    def __init__(
        self, place, parts, rank=None, *, made=torch.optim.SGD, given="rows", epochs=True, **how
    ):
        X, y = rows()
        self.ranks = range(len(parts)) if rank is None else [rank]
        own = slice(0, parts[-1].stop) if rank is None else parts[rank]
        self.X, self.y = X[own], y[own]
        self.parts = [slice(p.start - own.start, p.stop - own.start) for p in parts]
        self.net = place(net())
        how_made = {"lr": 0.1, "weight_decay": 0.02}
        how_made |= {"momentum": 0.5} if made is torch.optim.SGD else {"lr": 0.01}
        optimizer = made(self.net.parameters(), **how_made)
        if "families" in how and "data" not in how:
            how |= {"data": (self.X, self.y), "loss": "mse"}
        with record(self.net, optimizer, **how) as recorder:
            for epoch in range(N_EPOCHS):
                for k in range(N_STEPS):
                    optimizer.zero_grad()
                    self._on_batches(recorder, epoch, k, given)
                    optimizer.step()
                if epochs:
                    recorder.epoch()
        self.trajectory = recorder.trajectory

    def _on_batches(self, recorder, epoch, k, given):
        for rank in self.ranks:
            part = self.parts[rank]
            order = np.random.default_rng([epoch, rank]).permutation(part.stop - part.start)
            batch = part.start + np.array_split(order, N_STEPS)[k]
            X, y = self.X[batch], self.y[batch]
            (mse_loss(self.net(X), y) / len(self.ranks)).backward()
            what = {"rows": batch, "tensors": (X, y), "size": len(batch)}[given]
            if given != "none":
                recorder.batch(what, accumulate=len(self.ranks) > 1)

    def fitted(self, model=None, X=None, **params):
        """What a fit gives, as plain numbers, with its summary."""
        how = {"mode": "trajectory", "trajectory": self.trajectory, "loss": "mse"} | params
        est = ImplicitRegularizationEstimator(model or self.net, **how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PathNoiseWarning)
            est.fit(self.X if X is None else X, self.y)
        return {name: getattr(est, name) for name in NUMBERS} | {
            "score": est.score(self.X, self.y) if self.scored(params) else 0.0,
            "header": [line[:40] for line in str(est.summary()).splitlines()[2:4]],
        }

    def scored(self, params):
        """Whether other rows can complete those of a fit."""
        return params.get("reference") != "batch" and self.trajectory.r_factors is None


def descent(params, lr, weight_decay):
    """Plain gradient descent."""
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)


REDUCED = ["l2", "l1"]
ROWS = ActivationL2("1") + Callables({"losses": lambda params, batch: batch.losses().square()})
# Of each: how the steps are recorded, and what is fitted.
FITS = {
    "gradient": ({}, {"family": "l2+l1"}),
    "batches": ({}, {"reference": "batch"}),
    "batches in windows": ({}, {"reference": "batch", "window": 3, "family": "l2+l1"}),
    "applied": ({}, {"reference": "applied", "family": "weight_decay+l1"}),
    "epochs": ({"every": 3}, {"window": "epoch"}),
    "sizes": ({"given": "size"}, {"window": "epoch"}),
    "tensors": ({"given": "tensors"}, {"reference": "batch"}),
    "adam": ({"made": torch.optim.AdamW}, {"window": "epoch"}),
    "rmsprop": ({"made": torch.optim.RMSprop}, {"reference": "applied", "window": 3}),
    "flow": ({"made": descent}, {"reference": "flow", "window": 3}),
    "evidence": ({}, {"mode": "endpoint"}),
    "layers": ({}, {"group_by": "layer", "known": {"l1": 1e-4}}),
    "rows": ({}, {"window": "epoch", "family": ROWS}),
    "reduced": ({"families": REDUCED}, {"window": "epoch", "family": "l2+l1"}),
    "reduced, applied": (
        {"families": REDUCED, "reference": "applied"},
        {"reference": "applied", "family": "l2+l1"},
    ),
    "reduced in windows": (
        {"families": REDUCED, "every": 3, "epochs": False},
        {"family": "l1", "known": {"l2": 0.01}},
    ),
    "reduced without rows": (
        {"families": REDUCED, "reference": "applied", "data": None},
        {"reference": "applied", "family": "l2+l1"},
    ),
}
OF_WHOLE = {"rows", "evidence"}  # which are not there in shards
IN_RECORD = {"reduced, applied", "reduced in windows", "reduced without rows"}
WAYS = {"even": EVEN, "uneven": UNEVEN}
FEW = {
    "even": {"gradient", "batches", "applied", "epochs", "rows", "reduced", *IN_RECORD},
    "uneven": {"epochs"},
}
OF_MEANS = {"gradient", "batches", "epochs", "sizes", "tensors", "reduced"}  # which differ there


def sharded(module):
    """The module in shards."""
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(module[0], mesh=mesh)
    return fully_shard(module, mesh=mesh)


TRAJECTORIES = {"ddp": nn.parallel.DistributedDataParallel, "fsdp": sharded}


def whole(module):
    """The module as one process has it."""
    return module


def fits(name, way, few):
    """Names of the fits of a kind of model; a few of them show the most."""
    some = FEW[way] if few else FITS if way == "even" else OF_MEANS
    return [fit for fit in FITS if fit in some and (name != "fsdp" or fit not in OF_WHOLE)]


def of_trajectories(rank=None, few=False):
    """The fits of a rank by their names, or those of one process."""
    places = {"one": whole} if rank is None else TRAJECTORIES
    found = {}
    for name, place in places.items():
        for way, parts in WAYS.items():
            held = {}
            for fit in fits(name, way, few):
                how, params = FITS[fit]
                key = repr(how)
                held[key] = held.get(key) or Training(place, parts, rank, **how)
                found[name, "trajectory", way, fit] = held[key].fitted(**params)
        if rank is not None:
            found[name, "trajectory", "faults"] = of_faults(place, rank)
    return found


def message(function, *args, **kwargs):
    """Words of the error that a call raises, with its type."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def local(tensor):
    """The entries of a tensor that are here."""
    own = tensor.detach()
    return own.to_local() if hasattr(own, "to_local") else own


def states_of(module):
    """Classes of the parts of a module, and all that they hold, hooks among them."""
    return [(type(part), {k: repr(v) for k, v in vars(part).items()}) for part in module.modules()]


class Tokens(nn.Sequential):
    """A model that returns the mean of its loss over labels, or of the means of its rows."""

    def __init__(self, mean="labels"):
        torch.manual_seed(2)
        super().__init__(nn.Embedding(5, 4), nn.Linear(4, 5))
        self.mean = mean
        self.double()

    def forward(self, input_ids, labels=None):
        """The loss and the scores."""
        scores = super().forward(input_ids.flatten()).reshape(*input_ids.shape, -1).clone()
        kept, after = (labels, scores) if self.mean != "next" else (labels[:, 1:], scores[:, :-1])
        if self.mean != "rows":
            return cross_entropy(after.flatten(0, 1), kept.flatten()), scores
        pairs = zip(after, kept, strict=True)
        return torch.stack([cross_entropy(*pair) for pair in pairs]).mean(), scores


def of_ragged_labels(place):
    """A fit of means over rows with unequal numbers of labels."""
    labels = torch.tensor([[1, 2, 3], [1, -100, -100]])
    ids = {"input_ids": torch.tensor([[0, 1, 2], [3, 4, 0]])}
    ImplicitRegularizationEstimator(place(Tokens("rows"))).fit(ids, labels)


def of_labels_apart(place, rank):
    """A fit of means over rows, which on each rank alone are means over labels too."""
    labels = torch.tensor([[1, 2, 3], [1, 0, 2]])
    labels[:, 1 + 2 * rank :] = -100
    ids = {"input_ids": torch.tensor([[0, 1, 2], [3, 4, 0]])}
    ImplicitRegularizationEstimator(place(Tokens("rows"))).fit(ids, labels)


def of_a_loop_that_raises(place, rank):
    """An error in a recorded loop of the second rank, while the first is in its own."""
    X, y = (array[EVEN[rank]] for array in rows())
    module = place(net())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    try:
        with record(module, optimizer, families=REDUCED, data=(X, y), loss="mse"):
            for _ in range(3):
                optimizer.zero_grad()
                mse_loss(module(X), y).backward()
                optimizer.step()
            if rank == 0:
                dist.barrier()
            raise RuntimeError("a loop that raises")
    finally:
        if rank:
            dist.barrier()


def of_faults(place, rank):
    """What the ranks are told where the second differs, or where one process is needed."""
    one = Training(place, EVEN, rank)
    probe = ContinueTraining(1)
    found = {"probe": message(one.fitted, trajectory=probe)}
    cut = one.trajectory[: -1 if rank else None]
    found["steps"] = message(one.fitted, trajectory=cut)
    found["windows"] = message(one.fitted, window=2 if rank else 3)
    held = NeuralNetRegressor(one.net).initialize()
    held.module_ = one.net
    found["skorch"] = message(one.fitted, model=held)
    found["families"] = message(one.fitted, family="hessian_trace")
    found["rows"] = message(one.fitted, X=one.X[:3] if rank else one.X)
    found["loop"] = message(of_a_loop_that_raises, place, rank)
    before = [local(p).clone() for p in one.net.parameters()]
    states = states_of(one.net)
    found["next"] = one.fitted(family="l2+l1", window="epoch")
    kept = states == states_of(one.net)
    pairs = zip(before, map(local, one.net.parameters()), strict=True)
    found["kept"] = str(kept and all(torch.equal(a, b) for a, b in pairs))
    if not hasattr(one.net, "reshard"):
        found["labels"] = message(of_labels_apart, place, rank)
    else:
        found["evidence"] = message(one.fitted, mode="endpoint")
        found["reduced"] = message(Training, place, EVEN, rank, families=["nuclear"])
        some = torch.optim.SGD([next(one.net.parameters())], lr=0.1)
        found["some"] = message(record, one.net, some)
        found["labels"] = message(of_ragged_labels, place)
    return found
