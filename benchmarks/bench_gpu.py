"""Time and memory of a fit over those of one bare pass, on a GPU.

A network of the size of a ResNet-18 on images, and a transformer of a billion weights on token
sequences, both of random weights in float32. The bare pass is the same loop over batches that are
on the CPU, with the gradient of the summed loss added up in ``.grad``. Medians over rounds that
call each once. Memory is what torch allocated on the device at most, beyond the bare pass.

Run: ``python benchmarks/bench_gpu.py [--rounds 5]``; ``--device cpu`` tries it on tiny networks.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from measuring import GIB, figures, ratio, rounds
from torch import Tensor, nn

from sklearn_implicitreg import ImplicitRegularizationEstimator

FAMILY = "l2+smooth_l1+power"


class Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        same = stride == 1 and n_in == n_out
        around = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
        self.around = nn.Identity() if same else nn.Sequential(around, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        return (self.inner(x) + self.around(x)).relu()


def resnet(width: int) -> nn.Module:
    """Four stages of two blocks; a width of 64 has 11 million weights."""
    widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    blocks, n_in = [], width
    for place, n_out in enumerate(widths):
        blocks.append(Block(n_in, n_out, 2 if place in (2, 4, 6) else 1))
        n_in = n_out
    first = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)]
    return nn.Sequential(*first, *blocks, *last)


class Transformer(nn.Module):
    """Class of a sequence of tokens; a width of 2048 and 20 layers have a billion weights."""

    def __init__(self, width: int, n_layers: int, n_tokens: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 128), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.tokens = nn.Embedding(n_tokens, width)
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mean over the places."""
        return self.out(self.layers(self.tokens(x)).mean(1))


def cases(tiny: bool) -> dict[str, tuple[Callable[[], nn.Module], Tensor, int]]:
    """Model, rows and rows at once of each."""
    if tiny:
        images, words = torch.randn(64, 3, 8, 8), torch.randint(0, 50, (32, 16))
        return {
            "resnet": (lambda: resnet(4), images, 16),
            "transformer": (lambda: Transformer(32, 2, 50), words, 8),
        }
    images, words = torch.randn(20_000, 3, 32, 32), torch.randint(0, 8192, (512, 512))
    return {
        "resnet": (lambda: resnet(64), images, 500),
        "transformer": (lambda: Transformer(2048, 20, 8192), words, 16),
    }


def measured(
    model: nn.Module, X: Tensor, batch: int, device: torch.device, n_rounds: int
) -> dict[str, float]:
    """Ratio of the seconds of both, and memory beyond that of the bare pass and one gradient."""
    y = torch.randint(0, 10, (len(X),))
    model, on_gpu = model.to(device).eval(), device.type == "cuda"

    def bare() -> None:
        model.zero_grad()
        for start in range(0, len(X), batch):
            rows, targets = (t[start : start + batch].to(device) for t in (X, y))
            nn.functional.cross_entropy(model(rows), targets, reduction="sum").backward()

    def fit() -> None:
        model.zero_grad()
        options = {"loss": "cross_entropy", "batch_size": batch, "module_mode": "eval"}
        ImplicitRegularizationEstimator(model, family=FAMILY, **options).fit(X, y)

    peaks = {}

    def watched(name: str, function: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if on_gpu:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            function()
            if on_gpu:
                torch.cuda.synchronize(device)
                peaks[name] = torch.cuda.max_memory_allocated(device) / GIB

        return run

    own = {"bare": bare, "fit": fit}
    found = rounds({name: watched(name, f) for name, f in own.items()}, n_rounds)
    numbers = {"fit / bare pass, seconds": ratio(found, "fit", "bare")}
    if on_gpu:
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
        numbers["GiB beyond a bare pass and a gradient"] = peaks["fit"] - peaks["bare"] - size
    return numbers


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu: tiny networks, to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        figures({"skipped": "no CUDA device is here"})
        return
    found = {}
    for name, (make, X, batch) in cases(tiny=device.type == "cpu").items():
        numbers = measured(make(), X, batch, device, args.rounds)
        found |= {f"{name}, {what}": value for what, value in numbers.items()}
    figures(found)


if __name__ == "__main__":
    main()
