"""Modules, data and comparisons that the tests of torch modules share."""

import copy
import functools
import random
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from sklearn_implicitreg import ImplicitRegularizationEstimator

N, P = 40, 5


def estimate(model, X, y=None, sample_weight=None, **params):
    """Fitted estimator; squared error unless another loss is given."""
    params = {"loss": "mse", "params": "all"} | params
    return ImplicitRegularizationEstimator(model, **params).fit(X, y, sample_weight)


def mlp(dtype=torch.float64):
    return nn.Sequential(nn.Linear(P, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def rows(n=N):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, P)), rng.normal(size=n)


def minimize(parameters, objective, max_iter, *, rounds=1, tol=1e-8):
    """Minimize by L-BFGS, in rounds of so many iterations until all slopes are below tol."""
    parameters = list(parameters)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=max_iter, tolerance_grad=tol, tolerance_change=0.0,
        history_size=100, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    for _ in range(rounds):
        optimizer.step(closure)
        if max(float(p.grad.abs().max()) for p in parameters) < tol:
            break


def by_hand(model, loss, terms):
    """Coefficients by NumPy's least squares on autograd's gradients over all parameters."""
    tensors = [p for p in model.parameters() if p.requires_grad]

    def flat(value):
        found = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=True)
        return np.concatenate(
            [
                (torch.zeros_like(t) if g is None else g).double().cpu().numpy().ravel()
                for g, t in zip(found, tensors, strict=True)
            ]
        )

    design = np.stack([flat(term(tensors)) for term in terms], axis=1)
    return np.linalg.lstsq(design, -flat(loss), rcond=None)[0]


def l2(tensors):
    return sum(t.square().sum() for t in tensors)


def l1(tensors):
    return sum(t.abs().sum() for t in tensors)


def quietly_compiled(model, **options):
    """Wrapped by torch.compile, whose own import warns of torch's deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(model, **options)


@functools.cache
def digits():
    X, y = load_digits(return_X_y=True)
    return torch.as_tensor(X / 16), torch.as_tensor(y)


@functools.cache
def digits_net(scope, max_iter, **coefs):
    """Stationary MLP on digits with l2 and smooth_l1 of all tensors or of weight matrices."""
    torch.manual_seed(0)
    X, y = digits()
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    seen = [p for p in model.parameters() if scope == "all" or p.ndim == 2]

    def objective():
        loss = F.cross_entropy(model(X), y)
        for p in seen:
            loss = loss + coefs.get("l2", 0.0) * p.square().sum()
            corner = F.smooth_l1_loss(p, torch.zeros_like(p), reduction="sum", beta=1e-3)
            loss = loss + coefs.get("smooth_l1", 0.0) * corner
        return loss

    minimize(model.parameters(), objective, max_iter)
    model.zero_grad()
    return model


class Rows(Dataset):
    def __init__(self, X, y):
        self.X, self.y = torch.as_tensor(X), torch.as_tensor(y)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], self.y[i]


class Noisy(Rows):
    """Random augmentation."""

    def __getitem__(self, i):
        return self.X[i] + torch.randn(P).double() + random.random() + np.random.rand(), self.y[i]


X_, Y_ = rows()


def bn_net():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(P, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
    ).double()  # fmt: skip
    model.train()
    for _ in range(3):
        model(torch.randn(16, P, dtype=torch.float64))
    return model.eval()


def bn_loss(model, size):
    """Mean squared error with batch statistics, of consecutive batches of one size."""
    own = copy.deepcopy(model).train()
    total = 0.0
    for start in range(0, N, size):
        part = slice(start, start + size)
        output = own(torch.as_tensor(X_[part]))[:, 0]
        total = total + F.mse_loss(output, torch.as_tensor(Y_[part]), reduction="sum")
    return own, total / N


def dropout_net():
    return nn.Sequential(
        nn.Linear(P, 30), nn.Tanh(), nn.Dropout(0.5), nn.Linear(30, 1)
    ).double()  # fmt: skip


def rng_states():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def fingerprint(model):
    """All that a user can see of a module, bit for bit, by identity and by value."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {n: (id(t), t.data_ptr(), t.detach().numpy().tobytes()) for n, t in tensors.items()},
        {n: t.requires_grad for n, t in tensors.items()},
        {n: None if t.grad is None else t.grad.numpy().tobytes() for n, t in tensors.items()},
        [m.training for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )
