"""Fits that are the same on several ranks and in one process, and what runs them there."""

from __future__ import annotations

import copy
import datetime
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rank_trajectories import Tokens, of_trajectories
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import (
    Endpoint,
    FrozenModel,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
)
from sklearn_implicitreg.penalties import (
    L2,
    ActivationL2,
    Callables,
    DeCov,
    Diagonal,
    Power,
    Spline,
)
from sklearn_implicitreg.problem import ranks

N_RANKS, N_ROWS, FIRST = 2, 37, 11  # rows of the first rank
PARTS = (slice(0, FIRST), slice(FIRST, N_ROWS))
NUMBERS = (
    *("coef_", "std_err_", "conf_int_", "pvalues_", "r2_", "cosine_", "vif_"),
    *("condition_number_", "n_equations_", "verdict_", "term_names_"),
)


def rows(part=slice(None), labels=False):
    """Rows of a rank, or all of them: X, y and weights."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N_ROWS, 5, generator=generator).double()
    y = torch.tanh(X.sum(1, keepdim=True)) + 0.3 * torch.randn(N_ROWS, 1, generator=generator)
    weight = torch.rand(N_ROWS, generator=generator).double() + 0.5
    if labels:  # the first rank has two of the three classes
        y = np.array(["ash", "oak"])[(y[:, 0] > 0).long().numpy()]
        y = np.where(np.arange(N_ROWS) % 3 + (np.arange(N_ROWS) >= FIRST) == 3, "elm", y)
    return X[part], y[part], weight[part]


def net(outputs=1, sizes=(7, 6, 3), seed=1, layer=None):
    """A net whose tensors do not divide by the ranks, after some training."""
    torch.manual_seed(seed)
    widths, layers = [5, *sizes, outputs], []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.Tanh() if layer is None else layer()]
    module = nn.Sequential(*layers[:-1]).double()
    if outputs == 1 and max(sizes) < 100:
        X, y, weight = rows()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.2, weight_decay=0.02)
        for _ in range(50):
            optimizer.zero_grad()
            ((module(X) - y).square()[:, 0] * weight).mean().backward()
            optimizer.step()
        optimizer.zero_grad()
    return module


def net_with_zeros():
    """Some weights at the kink of l1, whole rows among them."""
    module = net()
    with torch.no_grad():
        module[0].weight[:2] = 0
        module[2].weight[:, 1] = 0
    return module


def at_zero():
    """All weights at the kink of l1."""
    module = nn.Sequential(nn.Linear(5, 3, bias=False)).double()
    nn.init.zeros_(module[0].weight)
    return module


class Language(nn.Module):
    """A causal model whose head is its embedding; its loss is the mean over the labels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 6)
        self.body = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, input_ids, labels=None):
        logits = self.head(self.body(self.embedding(input_ids))[0])
        if labels is None:
            return {"logits": logits}
        lost = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
        return {"loss": lost, "logits": logits}


def texts(part):
    """Rows with from none to seven labels that count, more of them on the second rank."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (N_ROWS, 8), generator=generator)
    labels = ids.clone()
    for i, own in enumerate(labels):
        own[: i % 3 if i < FIRST else 0] = -100
        own[(1 + 3 * i % 8 if i < FIRST else 4 + i % 5) :] = -100
    rows = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
    return DataLoader(rows[part], batch_size=4)


def squares(output, target):
    """A loss of the user's own, a number for each row."""
    return (output - target).square().mean(1)


def numbers_of(est):
    """What a fit gives, as plain numbers."""
    return {name: getattr(est, name) for name in NUMBERS} | {"summary": str(est.summary())}


def fitted(model, X, y=None, weight=None, **params):
    """A fit as plain numbers, with its score on the same rows."""
    est = ImplicitRegularizationEstimator(model, **{"loss": "mse"} | params).fit(X, y, weight)
    whole = {name: torch.ones(shape) for name, shape in est.penalty_.tensors.items()}
    return numbers_of(est) | {
        "score": est.score(X, y, weight),
        "penalty": float(est.penalty_(whole)),
    }


def of_loader(place, part):
    """Rows as a loader gives them, in small batches."""
    X, y, _ = rows(part)
    return fitted(place(net()), DataLoader(TensorDataset(X, y), batch_size=4), batch_size=4)


def of_search(place, part):
    """The family that a search takes; its criterion is of blocks that are drawn in each rank."""
    families = ["l2", "l1", "l2+l1", "power"]
    search = ImplicitRegularizationCV(place(net()), families=families, loss="mse")
    search.fit(*rows(part))
    return numbers_of(search.best_estimator_) | {
        "best": search.best_name_,
        "r2": search.cv_results_["r2"],
        "verdict": search.cv_results_["verdict"],
    }


def of_list(place, part):
    """Two endpoints with one coefficient."""
    group = [Endpoint(place(net(seed=seed)), *rows(part)[:2]) for seed in (1, 2)]
    return numbers_of(ImplicitRegularizationEstimator(None, loss="mse").fit(group))


def of_labels(place, part):
    """Classes by names, of which no rank need have all."""
    model = place(net(outputs=3))
    return fitted(model, *rows(part, labels=True), loss="cross_entropy")


def of_language(place, part):
    """Batches of dicts with unequal numbers of labels, of which each rank has its own."""
    how = {"loss": "auto", "params": "all", "family": "l2+l1"}
    return fitted(place(Language()), texts(part), **how)


def of_one_text(place, part):
    """A rank with a single row, which shows nothing of what its loss is a mean over."""
    part = slice(*(1 if end == FIRST else end for end in (part.start, part.stop)))
    return fitted(place(Language()), texts(part), loss="auto")


def tokens(part, weighted="no", apart=False):
    """Rows with unequal numbers of labels; those of one rank or of both may have weights."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, (N_ROWS, 6), generator=generator)
    labels = torch.randint(5, (N_ROWS, 6), generator=generator)
    row = torch.arange(N_ROWS)
    n = 2 + 3 * (row >= FIRST) if apart else row % 6 + 1  # the same in each rank, or none
    labels[torch.arange(6) >= n[:, None]] = -100
    labels[-1] = -100
    weight = None if weighted == "no" else 0.5 * (row % 4)
    if weighted == "first":
        weight = None if part.start else torch.where(row < FIRST, weight, 1.0)
    return {"input_ids": ids[part]}, labels[part], weight if weight is None else weight[part]


def of_tokens(place, part, mean="labels", **how):
    """A model that returns the mean over labels, of which the rows have unequal numbers."""
    params = {"loss": "auto", "batch_size": 4, "params": "all"}
    return fitted(place(Tokens(mean)), *tokens(part, **how), **params)


def of_noise(place, part):
    """The noise in a search, from blocks of which each has rows of several weights."""
    ids, labels, weight = tokens(part, weighted="all")
    many = [own.repeat_interleave(4, 0) for own in (*ids.values(), labels, weight)]
    how = {"families": ["l2", "l1"], "loss": "auto", "params": "all"}
    search = ImplicitRegularizationCV(place(Tokens()), **how)
    search.fit({"input_ids": many[0]}, *many[1:])
    return {name: search.cv_results_[name] for name in ("mean_test_score", "se_difference")}


def squared_losses(params, batch):
    """A family of rows, of the losses of the training and of a layer."""
    return batch.losses().square() * batch.activation("1").square().mean(1)


def of_rows(place, part, kind="mse", family=None):
    """Families that are means over the rows of all ranks."""
    family = family or ActivationL2("1") + Callables({"losses": squared_losses}) + L2()
    if kind == "mse":
        params = {"batch_size": 4, "family": family}
        est = ImplicitRegularizationEstimator(place(net()), loss="mse", **params).fit(*rows(part))
        return numbers_of(est) | {"score": est.score(*rows(part))}
    X, y, weight = rows(part, labels=True)
    number = {"ash": 0, "elm": 1, "oak": 2 if kind == "weights" else -100}  # some that are ignored
    target = torch.tensor([number[name] for name in y])
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 4.0]) if kind == "weights" else None)
    params = {"batch_size": 4, "family": family, "loss": loss}
    est = ImplicitRegularizationEstimator(place(net(outputs=3)), **params).fit(X, target, weight)
    return numbers_of(est) | {"score": est.score(X, target, weight)}


def of_kinks(place, part):
    """What all weights at a kink imply, in the words of the error."""
    try:
        X, y, _ = rows(part)
        return fitted(place(at_zero()), X, y.repeat(1, 3), family="l1")
    except ValueError as error:
        return {"error": str(error)}


# What is called with a function that puts a module on the ranks, and the rows of a rank.
CASES = {
    "l2": lambda place, part: fitted(place(net()), *rows(part)),
    "frozen": lambda place, part: fitted(FrozenModel(place(net())), *rows(part)),
    "several terms": lambda place, part: fitted(place(net()), *rows(part), family="l2+l1+power"),
    "zeros": lambda place, part: fitted(place(net_with_zeros()), *rows(part), family="l2+l1"),
    "layers": lambda place, part: fitted(place(net()), *rows(part), group_by="layer"),
    "all tensors": lambda place, part: fitted(place(net()), *rows(part), params="all"),
    "two tensors": lambda place, part: fitted(place(net(sizes=(9,))), *rows(part), family="l2+l1"),
    "known": lambda place, part: fitted(
        place(net()), *rows(part), family="l1", known={"weight_decay": 0.02}
    ),
    "own loss": lambda place, part: fitted(place(net()), *rows(part), loss=squares),
    "large": lambda place, part: fitted(place(net(sizes=(300, 1000))), *rows(part), family="l2+l1"),
    "loader": of_loader,
    "search": of_search,
    "list": of_list,
    "labels": of_labels,
    "tokens": of_tokens,
    "next tokens": lambda place, part: of_tokens(place, part, "next", apart=True),
    "weighted tokens": lambda place, part: of_tokens(place, part, "next", weighted="all"),
    "tokens, some weighted": lambda place, part: of_tokens(place, part, weighted="first"),
    "rows": of_rows,
    "rows, class weights": lambda place, part: of_rows(place, part, "weights"),
    "rows, ignored labels": lambda place, part: of_rows(place, part, "ignored"),
    "rows, twice": lambda place, part: of_rows(
        place, part, family="gradient_norm+sharpness+jacobian+path_norm"
    ),
    "at kinks": of_kinks,
    "language": of_language,
    "one text": of_one_text,
}


def replicated(module):
    """The module on all ranks."""
    return nn.parallel.DistributedDataParallel(module)


def sharded(module):
    """The module in shards."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in module:
        if isinstance(part, nn.Linear):
            fully_shard(part, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def partly_sharded(module):
    """The last layer whole on all ranks, and its gradient not reduced."""
    fully_shard(module[0], mesh=init_device_mesh("cpu", (N_RANKS,)))
    return module


PLACES = {"ddp": replicated, "fsdp": sharded, "partly": partly_sharded}
WHOLE = ("language", "one text", *(case for case in CASES if case.startswith("rows")))


def cases_of(name):
    """Cases of a kind of model; partly in shards is as the others."""
    if name == "partly":
        return ["l2", "zeros"]
    return [case for case in CASES if name == "ddp" or case not in WHOLE]


FAULTS = {  # of the second rank: parameters and rows
    "families": ({"family": "l1"}, {}),
    "parameters": ({"params": "all"}, {}),
    "unknown": ({"family": "l22"}, {}),
    "type": ({}, {"X": lambda X: X.float()}),
    "nan": ({}, {"X": lambda X: X * float("nan")}),
    "width": ({}, {"X": lambda X: X[:, :4]}),
    "empty": ({}, {"X": lambda X: X[:0], "y": lambda y: y[:0]}),
    "no batches": ({}, {"X": lambda X: DataLoader(TensorDataset(X[:0])), "y": lambda y: None}),
    "targets": ({}, {"y": lambda y: y[:3]}),
}
# Families that need whole tensors or rows.
REFUSED = {
    "nuclear": "nuclear",
    "rows": DeCov("1"),
    "groups": "group_lasso",
    "own": {"own": lambda params: sum(p.abs().sum() for p in params.values())},
    "knots": Spline(),
    "shape": Power(q="fit"),
    "structured": Diagonal(),
}


def message(function, *args, **kwargs):
    """Words of the error that a call raises, with its type."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def of_faults(place, rank):
    """The errors of each rank for the faults of the second one, and that the next fit works."""
    model, found = place(net()), {}
    for name, (params, changed) in FAULTS.items():
        given = dict(zip(("X", "y"), rows(PARTS[rank])[:2], strict=True))
        if rank:
            given |= {key: change(given[key]) for key, change in changed.items()}
        est = ImplicitRegularizationEstimator(model, loss="mse", **(params if rank else {}))
        found[name] = message(est.fit, given["X"], given["y"])
    found["next"] = fitted(model, *rows(PARTS[rank]))["coef_"]
    return found


def of_errors(place, rank):
    """Families and settings that are not there over ranks."""
    model, found = place(net()), {}
    for name, family in REFUSED.items():
        est = ImplicitRegularizationEstimator(model, loss="mse", family=family)
        found[name] = message(est.fit, *rows(PARTS[rank]))
    for params in ({"cache": "folder"}, {"dtype": "float32"}, {"covariance": "bootstrap"}):
        est = ImplicitRegularizationEstimator(model, loss="mse", **params)
        found[next(iter(params))] = message(est.fit, *rows(PARTS[rank]))
    est = ImplicitRegularizationEstimator(model, loss="mse").fit(*rows(PARTS[rank]))
    found["recover"] = message(est.recover, *rows(PARTS[rank]))
    return found


def of_disagreements(rank):
    """Other weights, another version, and a rank that does not come."""
    model, found = replicated(net()), {}
    est = ImplicitRegularizationEstimator(model, loss="mse")
    if rank:
        with torch.no_grad():
            model.module[0].weight[0, 0] += 1e-12
    found["weights"] = message(est.fit, *rows(PARTS[rank]))
    model = replicated(net())
    est = ImplicitRegularizationEstimator(model, loss="mse")
    version, ranks.version = ranks.version, lambda name: f"{rank}.0"
    found["versions"] = message(est.fit, *rows(PARTS[rank]))
    ranks.version = version
    limit, ranks._BEGIN = ranks._BEGIN, datetime.timedelta(seconds=0.5)
    if rank == 0:
        found["late"] = message(est.fit, *rows(PARTS[rank]))
    ranks._BEGIN = limit
    dist.barrier()
    found["next"] = fitted(model, *rows(PARTS[rank]))["coef_"]
    found["local"] = fitted(net(), *rows(PARTS[rank]))["coef_"]  # a plain module
    return found


def state_of(module):
    """All that a fit could change, as bytes; tensors in shards by their parts here."""
    named = [*module.named_parameters(), *module.named_buffers()]
    tensors = [t for _, t in named] + [t.grad for _, t in named if t.grad is not None]
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return (
        [t.detach().numpy().tobytes() for t in local],
        [(part.training, len(part._forward_hooks)) for part in module.modules()],
        [(name, t.requires_grad, t.grad is None) for name, t in named],
        (torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())),
    )


def of_states(place, rank):
    """Whether a fit and a failed fit leave a module in training state as it was."""
    module = net(layer=lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.2)))
    module[0].bias.requires_grad_(False)
    module.insert(1, nn.BatchNorm1d(7).double())
    model = place(module)
    X, y, _ = rows(PARTS[rank])
    (model(X) - y).square().mean().backward()
    before = state_of(model)
    found = []
    for target in (y, y[:3] if rank else y):
        est = ImplicitRegularizationEstimator(model, loss="mse", batch_size=8)
        found.append(message(est.fit, X, target))
        found.append(state_of(model) == before)
    return found


def of_a_stuck_rank(rank):
    """An error inside a layer of one rank, for which the others wait there."""
    module = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 1)).double()
    tokens = torch.tensor([[0, 1], [2, 9 if rank else 3]])
    ranks._IN_LAYERS = datetime.timedelta(seconds=1)
    est = ImplicitRegularizationEstimator(sharded(module), loss="mse")
    return message(est.fit, tokens, torch.ones(2, 1).double())


def work(rank, folder, port):
    """One rank: all checks, with what they found in a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)  # a file is slower
    dist.init_process_group("gloo", store=store, rank=rank, world_size=N_RANKS)
    found = of_trajectories(rank, few=True)
    for name, place in PLACES.items():
        for case in cases_of(name):
            found[name, case] = CASES[case](place, PARTS[rank])
    for name in ("ddp", "fsdp"):
        found[name, "faults"] = of_faults(PLACES[name], rank)
        found[name, "noise"] = of_noise(PLACES[name], PARTS[rank])
        found[name, "errors"] = of_errors(PLACES[name], rank)
        found[name, "states"] = of_states(PLACES[name], rank)
    found["disagreements"] = of_disagreements(rank)
    model = replicated(net())
    found["stuck"] = of_a_stuck_rank(rank)
    dist.destroy_process_group()
    est = ImplicitRegularizationEstimator(model, loss="mse")
    found["destroyed"] = message(est.fit, *rows())
    Path(folder, f"rank{rank}").write_bytes(pickle.dumps(found))


def work_on_trajectories(rank, folder, port):
    """One rank: all fits along recorded trainings."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=N_RANKS)
    Path(folder, f"rank{rank}").write_bytes(pickle.dumps(of_trajectories(rank)))
    dist.destroy_process_group()


def in_one_process():
    """The same cases with all rows."""
    found = {case: function(copy.copy, slice(None)) for case, function in CASES.items()}
    return found | of_trajectories(few=True)
