"""The tables of the page "Families", read off the classes."""

import copy
import inspect
import itertools
import math
import re
import warnings

import torch
from torch import nn

from sklearn_implicitreg import penalties
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import ALIASES, FAMILIES, STRUCTURED, Penalty, Structured
from sklearn_implicitreg.penalties.fitted import needs_rows
from sklearn_implicitreg.regression.design import Design

COMBINED = {"Callables", "Fixed", "Grouped", "Penalty", "Scoped", "Structured", "Sum"}
PARTS = {
    "Of single weights": ("weights", "spline"),
    "Around other weights": ("anchored",),
    "Of groups and matrices": ("groups", "matrices"),
    "Of singular values": ("spectra",),
    "Of activations and outputs": ("functions", "outputs", "decov", "path_norm"),
    "Of inputs": ("inputs",),
    "Of the loss": ("gradients", "sharpness", "dropout"),
    "Without terms": ("quadratic", "factored", "early_stopping", "learned"),
}
HEAD = (
    "| name | class | R | unknowns | equations | cost | scale | coincides with |\n"
    "|---|---|---|---|---|---|---|---|"
)
EXTRA = {"Dropout": {"q": 0.3}, "BatchGradientNorm": {"batch_size": 8}}
SAME = 1e-9  # of one less a cosine


def families():
    """Classes of all families by name, without what combines them."""
    found = {name: getattr(penalties, name) for name in penalties.__all__}
    return {
        name: own
        for name, own in found.items()
        if inspect.isclass(own) and issubclass(own, Penalty | Structured) and name not in COMBINED
    }


def problem(kind):
    """A small net in float64 on rows of which each has a class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        X = torch.rand(24, 8)
        layers = [nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)]
        if kind == "conv":
            X = X.reshape(-1, 2, 2, 2)
            layers = [nn.Conv2d(2, 3, 2, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(27, 4)]
        if kind == "deep":
            layers = [nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 4)]
        net = nn.Sequential(*layers).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(20 * p**3)  # some weights are small, or kinks and corners look alike
    net.insert(0, nn.Dropout(0.0))
    return adapt(net, Data(X.double(), torch.arange(24) % 4), Options(loss="cross_entropy")), net


def made(cls, net):
    """A family, with arguments for a net where it needs some."""
    draws = torch.Generator().manual_seed(1)
    like = {
        n: torch.rand(p.shape, generator=draws, dtype=p.dtype) for n, p in net.named_parameters()
    }
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    phi = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    given = {"layer": "2", "center": like, "weights": like, "v": like, "model": other}
    given |= {"module": phi, "lam": 0.1, "scale": 0.1, "eps": 0.1, "rank": 1}
    needed = inspect.signature(cls).parameters.values()
    own = {p.name: given[p.name] for p in needed if p.default is p.empty}
    return cls(**own, **EXTRA.get(cls.__name__, {}))


def columns(kind):
    """Gradients of all families with terms at a net, by class and term."""
    at, net = problem(kind)
    found = {}
    for name, cls in families().items():
        if issubclass(cls, Penalty):
            design = Design.at(made(cls, net), at)
            whole = torch.cat([design.columns(n) for n in at.params])
            found |= {(name, term): whole[:, j] for j, term in enumerate(design.term_names)}
    return found


def proportional(kind):
    """Pairs of classes with proportional gradients of a term at a net."""
    found = set()
    for (one, a), (other, b) in itertools.combinations(columns(kind).items(), 2):
        cosine = float(a @ b / (a.norm() * b.norm()))
        if one[0] != other[0] and 1 - abs(cosine) < SAME:
            found.add(frozenset({one[0], other[0]}))
    return found


def page():
    """A table for each kind of family."""
    names = {cls: name for name, cls in {**FAMILIES, **STRUCTURED}.items()}
    more = {}
    for alias, cls in ALIASES.items():
        more.setdefault(cls, []).append(alias)
    same = proportional("mlp")
    lines = []
    for title, modules in PARTS.items():
        lines += [f"## {title}", "", HEAD]
        for name, cls in families().items():
            if cls.__module__.rpartition(".")[2] in modules:
                own = [*([names[cls]] if cls in names else []), *more.get(cls, [])]
                lines.append(_row(name, cls, own, same))
        lines.append("")
    return "\n".join(lines)


def _row(name, cls, strings, same):
    formula = " ".join(re.search(r"``R = (.*?)``", inspect.getdoc(cls), re.DOTALL)[1].split())
    at, net = problem("mlp")
    family = made(cls, net)
    with_terms = issubclass(cls, Penalty)
    cells = [
        ", ".join(f"`{own}`" for own in strings) or "-",
        f"{{class}}`~sklearn_implicitreg.penalties.{name}`",
        f"`{formula}`".replace("|", "\\|"),
        _unknowns(family) if with_terms else "all at once",
        _equations(family, at) if with_terms else "of whole endpoints",
        _cost(family, at) if with_terms else "none beside the weights",
        _scale(family, at) if with_terms else "",
        ", ".join(sorted(f"`{next(iter(own - {name}))}`" for own in same if name in own)),
    ]
    return f"| {' | '.join(cells)} |"


def _unknowns(family):
    count = family.count_terms()
    shapes = ", ".join(type(family).shapes)
    return (str(int(count)) if math.isfinite(count) else "many") + (
        f" ({shapes} can be fit)" if shapes else ""
    )


def _equations(family, at):
    if not hasattr(family, "smooth"):
        return "all"
    place = family.placed(at.params)
    kinks = []
    for name, tensor in at.params.items():
        zeros = torch.zeros_like(tensor)
        zeros.reshape(-1)[-1] = 1.0
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                mask = place.smooth(name, zeros)
        except ValueError:
            return "all, where R has a gradient"
        kinks.append(not isinstance(mask, torch.Tensor) or not bool(mask.all()))
    return "not at kinks: inequalities" if any(kinks) else "all"


def _cost(family, at):
    (leaf, *_) = family.leaves(at.params, at)
    if family.on_rows:
        return "one pass over rows, shared"
    return "passes over rows of its own" if needs_rows(leaf) else "none beside the weights"


def _scale(family, at):
    design = Design.at(family, at)
    theta = torch.cat([design.weights(n).reshape(-1) for n in at.params])
    whole = torch.cat([design.columns(n) for n in at.params])[:, 0]
    along = abs(float(whole @ theta / (whole.norm() * theta.norm())))
    return "invariant" if along < 1e-9 else ""


if __name__ == "__main__":
    print(page())
