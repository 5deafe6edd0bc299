"""Fitted skorch nets: their own loss, on the rows that they were trained on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.helper import SliceDict
from skorch.history import History
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from sklearn_implicitreg.adapters.registry import Data, Options
from sklearn_implicitreg.adapters.sklearn.containers import innermost
from sklearn_implicitreg.adapters.torch.criteria import undo_reduction
from sklearn_implicitreg.adapters.torch.data import Rows, map_tensors
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.adapters.torch.loaders import read_rows
from sklearn_implicitreg.adapters.torch.losses import RowLoss
from sklearn_implicitreg.adapters.torch.models import module_problem
from sklearn_implicitreg.adapters.torch.modules import TorchProblem
from sklearn_implicitreg.adapters.torch.structure import groups_of, skeleton
from sklearn_implicitreg.adapters.training_rows import is_marked, marked
from sklearn_implicitreg.exceptions import ModelStateWarning, ParameterError, warn_user
from sklearn_implicitreg.problem.conventions import CONVENTIONS
from sklearn_implicitreg.problem.frozen import STATES
from sklearn_implicitreg.problem.parameters import shown

_OWN_LOSSES = tuple(
    cls.get_loss
    for cls in (NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor)
)


class _TrainingDict(SliceDict):
    """Dict of arrays whose rows a net was trained on."""

    of_training = True


def training_rows(net: Any, X: Any, y: Any = None) -> tuple[Any, Any]:
    """Rows that a skorch net with its own validation split was trained on.

    For searches over a trained net: they keep their kind (array, DataFrame, dict of arrays) and
    are marked, so that folds of them are not split a second time.

    Parameters
    ----------
    net : skorch.NeuralNet, or Pipeline, TransformedTargetRegressor or search that ends in one
        Fitted on X and y.
    X : array-like of shape (n, ...), DataFrame or dict of arrays
        All rows that were given to ``fit`` of the net, or of what it is in.
    y : array-like of shape (n,) or (n, outputs)

    Returns
    -------
    X_train, y_train
        The rows of the training part, in the order of the split, as they were given: a pipeline
        transforms them itself.

    Raises
    ------
    ValueError
        If the split cannot be reproduced, other rows were given in training, or there is no
        fitted skorch net inside.
    TypeError
        For a Dataset, DataLoader or sparse matrix, which cannot be marked or folded.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetRegressor
    >>> from sklearn_implicitreg import training_rows
    >>> X = np.ones((10, 2), dtype=np.float32)
    >>> net = NeuralNetRegressor(torch.nn.Linear(2, 1), max_epochs=1, verbose=0)
    >>> X_train, y_train = training_rows(net.fit(X, X[:, :1]), X, X[:, :1])
    >>> X_train.shape
    (8, 2)
    """
    if isinstance(X, Dataset | DataLoader) or sparse.issparse(X):
        raise TypeError(
            f"Expected arrays, a DataFrame or a dict of arrays as X, got {type(X).__name__}, of "
            "which searches cannot take folds; fit on all of it, or give its arrays."
        )
    given = net
    net, data = innermost(net, Data(X, y))
    if not isinstance(net, NeuralNet):
        what = "a fitted skorch net, or a pipeline or search that ends in one"
        raise ParameterError(f"Expected net of training_rows to be {what}, got {shown(given)}.")
    net.check_is_fitted(["module_"])
    own, target = _plain(data.X), data.y
    _dataset(net, own, target)
    index = _training_index(net, own, target)
    if index is None:
        return _marked(X if isinstance(X, Mapping | pd.DataFrame) else np.asarray(X)), y
    return _marked(_taken(X, index)), None if y is None else _taken(y, index)


def _taken(rows: Any, index: npt.NDArray[np.intp]) -> Any:
    if isinstance(rows, Mapping):
        return {key: _taken(value, index) for key, value in rows.items()}
    if isinstance(rows, pd.DataFrame | pd.Series):
        return rows.iloc[index]
    return np.asarray(rows)[index]


def _marked(X: Any) -> Any:
    if isinstance(X, Mapping):
        return _TrainingDict(**{key: np.asarray(value) for key, value in X.items()})
    return marked(X)


def _plain(X: Any) -> Any:
    """Array without its mark; a copy of one that torch could not share without a warning."""
    if not isinstance(X, np.ndarray):
        return X
    return np.asarray(X) if X.flags.writeable else np.array(X)


def _apart(value: Any) -> Any:
    """What a net notes its training in, as a copy; anything else as it is."""
    if not isinstance(value, list | dict | set):
        return value
    own = copy.copy(value)
    if isinstance(own, History) and own:  # batches are noted in its last epoch
        own.append(copy.deepcopy(own.pop()))
    return own


class _OwnNet:
    """Shallow copy of a net around a skeleton of its module: its ``infer`` and ``get_loss``."""

    def __init__(self, net: NeuralNet, criterion: Any):
        # copy.copy uses pickle, which copies the weights and the optimizer's state.
        self._net = object.__new__(type(net))
        vars(self._net).update({name: _apart(value) for name, value in vars(net).items()})
        self.trained: nn.Module | None = vars(net).get("module_")
        if type(net).get_loss not in _OWN_LOSSES:  # which may call it or write to its buffers
            with STATES:
                self.trained = skeleton(net.module_, None, None)
        self._inputs: Any = None
        self._rows: Any = None
        # Not by setattr, which registers modules in state that the copy shares with the net.
        vars(self._net)["criterion_"] = criterion

    def forward(self, module: nn.Module, inputs: Any) -> Any:
        """Outputs as the net computes them."""
        vars(self._net)["module_"] = module
        vars(self._net)["device"] = str(next(module.parameters()).device)
        self._inputs = inputs
        return self._net.infer(inputs)

    def on_rows(self, rows: Any) -> None:
        """Name the rows among the last inputs that the next outputs belong to."""
        self._rows = rows

    def loss(self, output: Any, target: Any) -> Tensor:
        """Loss as the net computes it in training; a penalty in it is on the trained module."""
        # The equations are differentiated by the skeleton's tensors, which a penalty on the
        # module's parameters does not reach.
        vars(self._net)["module_"] = self.trained
        return self.inside_loss(output, target)

    def inside_loss(self, output: Any, target: Any) -> Tensor:
        """The same by the module that gave the outputs, which the loss may call."""
        inputs = self._inputs
        if self._rows is not None:
            inputs = map_tensors(lambda tensor: tensor[self._rows], inputs)
        loss: Tensor = self._net.get_loss(output, target, X=inputs, training=True)
        return loss


def adapt_net(net: NeuralNet, data: Data, options: Options) -> TorchProblem:
    """Problem of a fitted net; its loss, scope and rows are its own."""
    if options.loss != "auto":
        raise ValueError(
            f"Expected loss='auto' for a skorch net, whose own get_loss is used, got "
            f"{options.loss!r}; give net.module_ as the model to analyse another loss."
        )
    net.check_is_fitted(["module_"])
    if not _has_history(net):
        warn_user(
            "The net has no training history: its weights are taken as trained, and the rows "
            "given as the rows that it was fitted on. Load its history too, or give "
            "`training_rows(net, X, y)` where it held rows out.",
            ModelStateWarning,
        )
    _check_one_module(net)
    row_loss, own = _row_loss(net)
    decayed, groups = _optimizer_groups(net)
    return module_problem(
        net.module_,
        row_loss,
        _training_part(net, data, options),
        options,
        model_name=f"{type(net).__name__} of {type(net.module_).__name__}",
        default=decayed or None,
        forward=own.forward,
        convention=CONVENTIONS["torch"],
        param_groups=groups,
    )


def _check_one_module(net: NeuralNet) -> None:
    own = set(map(id, net.module_.parameters()))
    others = [name for name, p in net.get_all_learnable_params() if id(p) not in own]
    if others:
        raise ValueError(
            f"Expected a net whose learnable parameters are all in module_, got {others} outside "
            "it; analyse a bare nn.Module that holds all of them, with `loss=`."
        )


def _row_loss(net: NeuralNet) -> tuple[RowLoss, _OwnNet]:
    """The net's loss per row where its get_loss is skorch's own, else the mean it returns."""
    criterion = getattr(net, "criterion_", None)
    if criterion is None:  # a net that only loaded its weights
        criterion = net.criterion
        if criterion is None:
            raise ValueError(
                "Expected a net with its criterion, got one after trim_for_prediction(), which "
                "drops it: analyse the net before it is trimmed, or net.module_ with `loss=`."
            )
        if isinstance(criterion, type):
            criterion = criterion(**net.get_params_for("criterion"))
    row_loss = undo_reduction(criterion)
    words = row_loss.words
    if isinstance(net, NeuralNetClassifier) and isinstance(criterion, nn.NLLLoss):
        words = words.replace("log-likelihood", "log-likelihood of probabilities")
    if type(net).get_loss in _OWN_LOSSES:
        if isinstance(row_loss.criterion, nn.Module):
            row_loss.criterion.train(False)
    else:
        summed, own_copy = getattr(criterion, "reduction", None) == "sum", copy.deepcopy(criterion)
        row_loss = RowLoss(own_copy, words, scalar_is_sum=summed, trained_sum=summed, custom=True)
    own = _OwnNet(net, row_loss.criterion)
    found = replace(row_loss, words=words, evaluate=own.loss, strict=True, on_rows=own.on_rows)
    if found.custom:
        found = replace(found, inside=own.inside_loss, model=own.trained)
    return found, own


def optimizers_of(net: NeuralNet) -> list[Any]:
    """Optimizers of a fitted net that have tensors of its module."""
    own = set(map(id, net.module_.parameters()))
    found = [getattr(net, f"{name}_", None) for name in net._optimizers]
    found = [getattr(one, "optimizer", one) for one in found]  # Accelerate wraps them
    return [one for one in found if one is not None and not own.isdisjoint(_held(one))]


def _held(optimizer: Any) -> Iterator[int]:
    return (id(p) for group in optimizer.param_groups for p in group["params"])


def _optimizer_groups(net: NeuralNet) -> tuple[set[str], dict[str, str] | None]:
    """Names of the tensors that the optimizer decays, and the group of every tensor."""
    optimizers = optimizers_of(net)
    if not optimizers:
        return set(), None
    names = {id(p): name for name, p in net.module_.named_parameters()}
    every = [group for one in optimizers for group in one.param_groups]
    decays = [p for group in every if group.get("weight_decay", 0) for p in group["params"]]
    return {names[id(p)] for p in decays if id(p) in names}, groups_of(optimizers, names)


def _training_part(net: NeuralNet, data: Data, options: Options) -> Rows:
    """The rows that the net was trained on, in batches of its own iterator."""
    X, y = _plain(data.X), _plain(data.y)
    weight = data.sample_weight
    if isinstance(X, DataLoader):
        return read_rows(Data(X, y, weight), options.n_passes)
    dataset = _dataset(net, X, y)
    if not is_marked(data.X) and _has_history(net):
        index = _training_index(net, X, y, options.completing)
        if index is not None:
            dataset = Subset(dataset, index.tolist())
            weight = None if weight is None else np.asarray(weight)[index]
    loader = net.get_iterator(dataset, training=True)
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"Expected a net whose iterator_train is a DataLoader, got {type(loader).__name__}; "
            "analyse net.module_ with a DataLoader and `loss=`."
        )
    return read_rows(Data(loader, None, weight), options.n_passes)


def _dataset(net: NeuralNet, X: Any, y: Any) -> Dataset[Any]:
    """Data set of the rows, as the net makes it."""
    try:
        made: Dataset[Any] = net.get_dataset(X, y)
        len(made)  # type: ignore[arg-type]
    except (TypeError, ValueError, IndexError) as error:
        advice = "Give as many rows of X as of y." if "consistent length" in str(error) else ""
        raise ValueError(
            f"Expected X and y that the net can be fitted on, got {shown(X)} and {shown(y)}: "
            f"{error} {advice}".rstrip()
        ) from error
    return made


def _training_index(
    net: NeuralNet, X: Any, y: Any, completing: bool = False
) -> npt.NDArray[np.intp] | None:
    """Positions of the training rows by the net's own split; None where all rows are."""
    with preserved_rng(torch.device("cpu")):
        first, valid = net.get_split_datasets(X, y)
        again, _ = net.get_split_datasets(X, y)
    n_given = len(net.get_dataset(X, y))
    if valid is None or len(first) == n_given:
        return None
    index, second = (np.asarray(getattr(part, "indices", [])) for part in (first, again))
    if not len(index) or not np.array_equal(index, second):
        raise ValueError(
            "The net's validation split cannot be reproduced (a random split without "
            "random_state): the rows that it was trained on are not known. Retrain with "
            "train_split=ValidSplit(..., random_state=0) or an integer cv, or analyse "
            "net.module_ with its training rows and `loss=`."
        )
    if not _has_history(net):
        return index
    sizes, held = _sizes(net, "train"), sum(_sizes(net, "valid"))
    trained, n_train = sum(sizes), len(first)
    dropped = n_train // max(1, *sizes) * max(sizes)  # without an incomplete last batch
    if held != len(valid) or trained not in (n_train, dropped):
        if completing:
            return None
        raise ValueError(
            f"Expected the {trained + held} rows that the net's history says it was given "
            f"({trained} to train on), got {n_given}: its own validation split cannot be "
            "replayed on other rows. Give all of them, or search on "
            "`training_rows(net, X, y)`."
        )
    return index


def _has_history(net: NeuralNet) -> bool:
    return len(getattr(net, "history", None) or []) > 0


def _sizes(net: NeuralNet, part: str) -> list[int]:
    """Rows in the training or validation batches of the last epoch."""
    return [batch.get(f"{part}_batch_size", 0) for batch in net.history[-1]["batches"]]


HANDLERS = {"NeuralNet": adapt_net}
