"""Cost of recording: one-million-parameter MLP, batches of 512, a mark every ten steps.

Runs with and without the recorder alternate. Marks with weights go to disk; ``triangles`` keep the
equations of weight decay against the gradient that the optimizer was given, and no weights. Printed
is what the recorder adds: the median over the pairs; the best run with it over the best without,
which other work on the machine disturbs less; and the best runs in processor time, which counts
the writing of the marks.

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

TRIANGLES = {"families": ["l2"], "reference": "applied"}
KINDS = {
    "weights": {},
    "with gradients": {"gradients": True},
    "triangles": TRIANGLES,
    "triangles of 3": {**TRIANGLES, "families": ["l2+smooth_l1+power"]},
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
    """Elapsed and processor seconds of runs without and with the recorder."""
    plain, recorded = [], []
    for _ in range(n_pairs):
        module = net()
        optimizer = make(module.parameters())
        plain.append(timed(lambda o=optimizer, m=module: train(m, o, X, y, n_steps)))
        module = net()
        optimizer = make(module.parameters())
        with tempfile.TemporaryDirectory() as folder:

            def run(module=module, optimizer=optimizer, folder=folder):
                place = {} if "families" in how else {"directory": folder}
                with record(module, optimizer, **place, **how):
                    train(module, optimizer, X, y, n_steps)

            recorded.append(timed(run))
    return plain, recorded


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
            how = {"every": 10, **KINDS[kind]}
            plain, own = cost(OPTIMIZERS[name], X, y, options.steps, options.pairs, **how)
            pairs = zip(own, plain, strict=True)
            median = statistics.median(mine[0] / bare[0] for mine, bare in pairs)
            best, processor = (
                min(run[i] for run in own) / min(run[i] for run in plain) for i in (0, 1)
            )
            print(
                f"{name:10s} {kind:16s} median {median - 1:+.1%}, best {best - 1:+.1%}, "
                f"processor {processor - 1:+.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
