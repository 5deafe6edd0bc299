"""What the options of a fit mean for a module: device, type, batches and states of its layers."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import types
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import nn

from sklearn_implicitreg.adapters.registry import Options
from sklearn_implicitreg.adapters.torch.data import Rows
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user
from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.frozen import own_name
from sklearn_implicitreg.problem.vectors import wide

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_AUTO_BATCH = 8192  # rows; larger batches gained nothing, smaller ones cost up to 2.5 times
_AUTO_BATCH_NUMBERS = 2**24  # numbers in the inputs of a batch: 128 MB in float64


def device_of(spec: Any, params: Params) -> torch.device:
    """Device that an option names; by default that of the parameters, where it has float64."""
    first = next(iter(params.values()))
    if spec == "auto":
        return wide(first[:0]).device
    try:
        device = torch.device(spec)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Expected device 'auto', 'cpu', 'cuda', ..., got {spec!r}.") from error
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = device.type != "cuda" or (device.index or 0) < n_cuda
    try:
        torch.empty(0, device=device if there else "cpu")
    except (RuntimeError, AssertionError, NotImplementedError):
        there = False
    if not there:
        found = ["cpu", *(f"cuda:{i}" for i in range(n_cuda))]
        raise ValueError(
            f"Expected a device that is there, one of {found}, got {spec!r}; use device='cpu'."
        )
    if wide(torch.empty(0, device=device)).device != torch.empty(0, device=device).device:
        raise ValueError(
            f"Expected a device with float64, in which gradients are summed, got {spec!r}; use "
            "device='cpu'."
        )
    return device


def dtype_of(spec: Any, params: Params) -> torch.dtype:
    """Type that gradients are computed in."""
    kinds = {p.dtype for p in params.values()}
    if spec == "auto":
        coarse = sorted(str(k).removeprefix("torch.") for k in kinds if torch.finfo(k).bits < 32)
        if coarse:
            warn_user(
                f"The model is stored in {' and '.join(coarse)}, too coarse for "
                "gradients: they are computed in float32 from the stored weights.",
                ModelStateWarning,
            )
        return functools.reduce(torch.promote_types, kinds, torch.float32)
    found = {"float32": torch.float32, "float64": torch.float64}.get(
        str(spec).removeprefix("torch.")
    )
    if found is None:
        raise ValueError(f"Expected dtype 'auto', 'float32' or 'float64', got {spec!r}.")
    return found


def seed_of(options: Options, n_passes: int) -> int | None:
    """Seed of the random modules, where they draw, and of several readings of random rows."""
    if options.random_state is not None:
        return int(check_random_state(options.random_state).randint(2**31 - 1))
    if options.module_mode != "train" and n_passes == 1:
        return None
    with preserved_rng(torch.device("cpu")):  # NumPy's generator stays where it was
        return int(check_random_state(None).randint(2**31 - 1))


def set_modes(module: nn.Module, options: Options, rows: Rows) -> tuple[bool, list[str]]:
    """Put the skeleton in the state of ``module_mode``; whether batch statistics are used."""
    _put_in_training(module)
    still = _norms_at_rest(module, options)
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m not in still]
    for part in module.modules():  # not by train(), which may do more than set the state
        part.training = options.module_mode == "train" and part not in still
    if options.module_mode == "train":
        layers = map(module.get_submodule, itertools.chain(*doubtful(module).values()))
        own = any([*layer.buffers(recurse=False)] for layer in layers)
        return bool(norms) or own, ["modules in training state", *_noted(still)]
    if options.module_mode == "eval":
        return False, []
    running = [
        m
        for m in module.modules()
        if isinstance(m, INSTANCE_NORMS) and m.track_running_stats and m not in still
    ]
    for norm in running:
        norm.training = True
    normalized, notes = _set_batch_norms(norms, options, rows)
    return normalized, [
        *notes,
        *_noted(still),
        *["InstanceNorm by the statistics of each instance"][: len(running)],
    ]


def running_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Normalizations that have running statistics, by name."""
    kinds = (*BATCH_NORMS, *INSTANCE_NORMS)
    found = {own_name(n): part for n, part in module.named_modules() if isinstance(part, kinds)}
    return {name: part for name, part in found.items() if part.running_mean is not None}


def _norms_at_rest(module: nn.Module, options: Options) -> set[nn.Module]:
    """Normalizations that were trained with their running statistics."""
    norms = running_norms(module)
    if options.norms_in_training is not None:
        active = options.norms_in_training
        return {part for name, part in norms.items() if active.get(name, True) is False}
    return {part for part in norms.values() if module.training and not part.training}


def _put_in_training(module: nn.Module) -> None:
    """Call a ``train`` of the user's own: it may split merged weights, or leave norms at rest."""
    own = any(type(part).train is not nn.Module.train for part in module.modules())
    if own and not module.training:
        for p in module.parameters():  # whose memory is the user's
            p.data = p.data.clone()
        module.train()


def _noted(still: set[nn.Module]) -> list[str]:
    return [f"normalizations trained at rest, by running statistics: {len(still)}"] if still else []


def _set_batch_norms(
    norms: Sequence[nn.Module], options: Options, rows: Rows
) -> tuple[bool, list[str]]:
    if not norms:
        return False, []
    if options.batch_size == "auto" and rows.train_batch_size is None:
        warn_user(
            "The model has BatchNorm layers and the size of its training batches is not known: "
            "their running statistics are used, and the gradient is that of another loss than the "
            "net was trained on. Give `batch_size`, the size it was trained with.",
            ModelStateWarning,
        )
        return False, ["BatchNorm by running statistics (training batch size not known)"]
    for norm in norms:
        norm.training = True
    return True, ["BatchNorm by the statistics of training-size batches"]


def doubtful(module: nn.Module) -> dict[str, list[str]]:
    """Classes outside torch whose methods ask for the training state, and their layers' names."""
    known = (*BATCH_NORMS, *INSTANCE_NORMS)
    asks = functools.cache(_asks_for_training)
    found: dict[str, list[str]] = {}
    for name, part in module.named_modules():
        if not isinstance(part, known) and any(map(asks, type(part).__mro__)):
            found.setdefault(type(part).__name__, []).append(name)
    return found


def _asks_for_training(cls: type) -> bool:
    if cls.__module__.partition(".")[0] in ("torch", "builtins"):
        return False
    methods = map(inspect.unwrap, filter(inspect.isfunction, vars(cls).values()))
    return any(_names_training(method.__code__) for method in methods)


def _names_training(code: types.CodeType) -> bool:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return "training" in code.co_names or any(map(_names_training, inner))


def stored_notes(names: list[str]) -> list[str]:
    """Say which tensors a penalty sees where a layer computes its weights from others."""
    stored = [n for n in names if re.search(r"(^|\.)parametrizations\.|weight_[gv]$", n)]
    if not stored:
        return []
    return [
        f"Penalties are on the stored tensors {', '.join(stored)}, not on the weights that are "
        "computed from them."
    ]


def batch_size_of(spec: Any, rows: Rows, normalized: bool) -> int:
    """Rows that are passed through the module together."""
    if spec != "auto":
        return int(spec)
    if normalized and rows.train_batch_size is not None:
        return rows.train_batch_size
    return max(1, min(_AUTO_BATCH, _AUTO_BATCH_NUMBERS // max(1, rows.row_size)))
