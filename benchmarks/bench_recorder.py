"""Cost of recording: one-million-parameter MLP, batches of 512, a mark every ten steps.

Runs with and without the recorder alternate, marks go to disk; printed are medians over the
pairs of the elapsed time and of the processor time, which other work on the machine disturbs less.

Run: ``python benchmarks/bench_recorder.py``
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW

from sklearn_implicitreg.trajectory import record

OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.01),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=1e-3),
    "AdamW": lambda p: AdamW(p, lr=1e-3),
    "Adagrad": lambda p: Adagrad(p, lr=0.01),
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


def train(module, optimizer, X, y, n_steps):
    loss_of = nn.CrossEntropyLoss()
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_of(module(X), y).backward()
        optimizer.step()


def timed(function):
    """Elapsed and processor seconds of a call."""
    begin = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def cost(make, X, y, n_steps, n_pairs, **how):
    """Median over pairs of what the recorder adds to both times, in parts of them."""
    added = []
    for _ in range(n_pairs):
        module = net()
        optimizer = make(module.parameters())
        plain = timed(lambda o=optimizer, m=module: train(m, o, X, y, n_steps))
        module = net()
        optimizer = make(module.parameters())
        with tempfile.TemporaryDirectory() as folder:

            def recorded(module=module, optimizer=optimizer, folder=folder):
                with record(module, optimizer, directory=folder, **how):
                    train(module, optimizer, X, y, n_steps)

            added.append([mine / own - 1 for mine, own in zip(timed(recorded), plain, strict=True)])
    return [statistics.median(column) for column in zip(*added, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS))
    options = parser.parse_args()
    X, y = torch.randn(512, 784), torch.randint(10, (512,))
    module = net()
    print(f"{sum(p.numel() for p in module.parameters()):,} parameters")
    train(module, OPTIMIZERS["SGD"](module.parameters()), X, y, 10)
    for name in options.optimizers:
        for how in ({"every": 10}, {"every": 10, "gradients": True}):
            elapsed, processor = cost(OPTIMIZERS[name], X, y, options.steps, options.pairs, **how)
            print(f"{name:10s} {how}: {elapsed:+.1%} elapsed, {processor:+.1%} processor")


if __name__ == "__main__":
    main()
