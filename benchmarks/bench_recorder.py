"""Cost of recording: one-million-parameter MLP, batches of 512, a mark every ten steps.

Runs with and without the recorder alternate. Marks with weights go to disk; ``R factors`` keep the
equations of weight decay against the gradient that the optimizer was given, and no weights. Printed
is what the recorder adds: the median over the pairs; the best run with it over the best without;
all processor time, which counts the writing of the marks; and that of a quiet cycle of ten steps,
where each step of the cycle is the lower quartile of its kind, which other work on the machine
disturbs least.

Run: ``python benchmarks/bench_recorder.py``
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW

from sklearn_implicitreg.trajectory import record

EVERY = 10
OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.01),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=1e-3),
    "AdamW": lambda p: AdamW(p, lr=1e-3),
    "Adagrad": lambda p: Adagrad(p, lr=0.01),
}

TRIANGLES = {"families": ["l2"], "reference": "applied"}
KINDS = {
    "weights": {},
    "with gradients": {"gradients": True},
    "R factors": TRIANGLES,
    "R factors of 3": {**TRIANGLES, "families": ["l2+smooth_l1+power"]},
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 640),
        nn.Tanh(),
        nn.Linear(640, 640),
        nn.Tanh(),
        nn.Linear(640, 128),
        nn.Tanh(),
        nn.Linear(128, 10),
    )


def train(module, optimizer, X, y, n_steps, seconds=None):
    """Steps of a plain loop; ``seconds`` takes the processor time after each."""
    loss_of = nn.CrossEntropyLoss()
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_of(module(X), y).backward()
        optimizer.step()
        if seconds is not None:
            seconds.append(time.process_time())


def timed(make, X, y, n_steps, how):
    """Elapsed and processor seconds of a run, and the processor seconds of each step."""
    module = net()
    optimizer = make(module.parameters())
    seconds = [time.process_time()]
    begin = time.perf_counter()
    if how is None:
        train(module, optimizer, X, y, n_steps, seconds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            place = {} if "families" in how else {"directory": folder}
            with record(module, optimizer, **place, **how):
                train(module, optimizer, X, y, n_steps, seconds)
    return time.perf_counter() - begin, np.diff(seconds).reshape(-1, EVERY)


def cost(make, X, y, n_steps, n_pairs, how):
    """What a recorder adds, as shares of a run without: by elapsed and by processor time."""
    runs = [[timed(make, X, y, n_steps, h) for h in (None, how)] for _ in range(n_pairs)]
    elapsed = np.array([[seconds for seconds, _ in pair] for pair in runs])
    plain, own = (np.concatenate([pair[i][1] for pair in runs]) for i in (0, 1))
    quiet = [np.quantile(steps, 0.25, axis=0).sum() for steps in (plain, own)]
    return {
        "median": np.median(elapsed[:, 1] / elapsed[:, 0]),
        "best": elapsed[:, 1].min() / elapsed[:, 0].min(),
        "processor": own.sum() / plain.sum(),
        "quiet": quiet[1] / quiet[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    X, y = torch.randn(512, 784), torch.randint(10, (512,))
    module = net()
    print(f"{sum(p.numel() for p in module.parameters()):,} parameters")
    train(module, OPTIMIZERS["SGD"](module.parameters()), X, y, 10)
    for name in options.optimizers:
        for kind in options.kinds:
            how = {"every": EVERY, **KINDS[kind]}
            found = cost(OPTIMIZERS[name], X, y, options.steps, options.pairs, how)
            shown = ", ".join(f"{key} {value - 1:+.1%}" for key, value in found.items())
            print(f"{name:10s} {kind:16s} {shown}", flush=True)


if __name__ == "__main__":
    main()
