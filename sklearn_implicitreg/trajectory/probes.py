"""Trajectories made on purpose from a model that is already trained."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.frozen import inner_module
from sklearn_implicitreg.problem.parameters import (
    NOTHING,
    SEED,
    Allowed,
    checked,
    function,
    instance,
    integer,
    number,
)
from sklearn_implicitreg.trajectory.marks import Mark
from sklearn_implicitreg.trajectory.recording.followed import inner_optimizer
from sklearn_implicitreg.trajectory.recording.record import record
from sklearn_implicitreg.trajectory.recording.recorder import Recorder
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.vectors import moved, norm
from sklearn_implicitreg.trajectory.window import Step


@dataclass
class _Made:
    """A trajectory that was made, and from what."""

    trajectory: Trajectory
    rows: tuple[Any, ...]
    tensors: Params

    def fits(self, rows: tuple[Any, ...], tensors: Params) -> bool:
        return (
            len(self.rows) == len(rows)
            and all(own is other for own, other in zip(self.rows, rows, strict=True))
            and self.tensors.keys() == tensors.keys()
            and all(torch.equal(t, tensors[name]) for name, t in self.tensors.items())
        )


class Probe(ABC):
    """Makes a trajectory from a trained model, once for its rows; give it as ``trajectory=``.

    Examples
    --------
    >>> from sklearn_implicitreg.trajectory import ContinueTraining, GradientDescentProbe, Probe
    >>> issubclass(ContinueTraining, Probe) and issubclass(GradientDescentProbe, Probe)
    True
    """

    _made: _Made | None = None

    def __sklearn_clone__(self) -> Probe:
        """Shared, not copied, with the trajectory that it made."""
        return self

    def run(self, model: Any, data: Data, whole: Problem) -> Trajectory:
        """Trajectory of a trained model, which is left as it is.

        Parameters
        ----------
        model : nn.Module or skorch net
        data : Data
            The rows that the problem was made of.
        whole : Problem
            The model and its rows with all trained tensors in scope.

        Returns
        -------
        trajectory : Trajectory
        """
        rows, slope = self._rows(data), self._slope(whole)
        tensors = {**whole.params, **{f"gradient of {n}": t for n, t in slope.items()}}
        if self._made is None or not self._made.fits(rows, tensors):
            began = {name: t.clone() for name, t in tensors.items()}
            self._made = _Made(self._make(model, data, whole), rows, began)
        return self._made.trajectory

    def _rows(self, data: Data) -> tuple[Any, ...]:
        """What identifies the rows that the trajectory depends on."""
        return data.X, data.y, data.sample_weight

    def _slope(self, whole: Problem) -> Params:
        """What identifies the loss of the trajectory, where it is that of the estimator."""
        return {}

    @abstractmethod
    def _make(self, model: Any, data: Data, whole: Problem) -> Trajectory: ...


class GradientDescentProbe(Probe):
    """Full-batch gradient descent from the trained weights, every step marked.

    With ``reference="flow"`` a finite step size adds a coefficient of ``lr / 4`` of
    :class:`GradientNorm`, up to :func:`finite_step_factor`.

    Parameters
    ----------
    lr : float
        Step size.
    n_steps : int, default=5
        Number of steps, each a pass over all rows.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Appendix H.5.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net, rows = torch.nn.Linear(1, 1), Data(torch.ones(2, 1), torch.ones(2, 1))
    >>> whole = adapt(net, rows, Options(loss="mse", params="all"))
    >>> GradientDescentProbe(lr=0.1, n_steps=3).run(net, rows, whole)
    Trajectory(3 steps of SGD, 4 marks, 3 epochs, batches known for 0 steps)
    """

    @checked(lr=number(above=0), n_steps=integer(1))
    def __init__(self, lr: float, n_steps: int = 5):
        self.lr = lr
        self.n_steps = int(n_steps)

    def __repr__(self) -> str:
        return f"GradientDescentProbe(lr={self.lr!r}, n_steps={self.n_steps!r})"

    def _slope(self, whole: Problem) -> Params:
        return whole.gradient().value

    def _make(self, model: Any, data: Data, whole: Problem) -> Trajectory:
        """The weights are carried in float64, whatever the gradient is computed in."""
        at = {name: t.double() for name, t in whole.params.items()}
        applied = {name: torch.zeros_like(t) for name, t in at.items()}
        visited = dict(applied)
        marks = [Mark(0, 0, at, applied, applied, visited)]
        for step in range(1, self.n_steps + 1):
            slope = whole.at(at).gradient().value
            visited, applied = moved(visited, at, 1.0), moved(applied, slope, 1.0)
            at = moved(at, slope, -self.lr)
            if not all(bool(torch.isfinite(t).all()) for t in at.values()):
                raise ValueError(
                    f"Expected finite steps, got NaN or inf at step {step} of gradient descent "
                    f"with lr={self.lr!r}; take a smaller lr."
                )
            marks.append(Mark(step, step, at, applied, applied, visited))
        # The steps are exact; a flow over them is a difference of weights.
        rounding = torch.finfo(torch.float64).eps * norm(marks[0].weights) / self.lr
        steps = (Step(self.lr, None, whole.n_rows, rounding),) * self.n_steps
        settings = {"lr": self.lr, "momentum": 0.0, "nesterov": False, "follows": "mean loss"}
        return Trajectory(tuple(marks), steps, "SGD", settings)


# Where the training of a class is continued, by a function of one name.
_LIBRARIES = {"NeuralNet": "skorch", "BaseMultilayerPerceptron": "sklearn"}


def _makes_optimizer(given: Any) -> bool:
    return callable(given) and not isinstance(given, nn.Module)


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2


class ContinueTraining(Probe):
    """Train a copy of a trained net on, and record it.

    A skorch net trains on by ``partial_fit``, without its callbacks that stop, print or write
    files; an ``MLPClassifier`` or ``MLPRegressor`` by ``partial_fit`` with its own optimizer. Both
    may be in a fitted pipeline, search or ``TransformedTargetRegressor``, whose other steps stay
    as they are. A bare module needs ``train_epoch`` and ``optimizer``.

    Parameters
    ----------
    n_epochs : int
        Epochs to train on.
    train_epoch : callable(model, optimizer, recorder) or (model, optimizer), default=None
        Trains a bare module for one epoch; ``recorder.batch(rows)`` names the rows of a batch,
        by their positions in the X that the estimator is fitted on.
    optimizer : Optimizer, list of them, or callable(parameters) -> one of these, default=None
        That of the training, of which a copy goes on from its state; or what makes a new one.
    every : int, default=1
        Steps between marks.
    data : tuple (X, y), default=None
        Rows that a skorch net or MLP is trained on, in searches, which fit the estimator on
        folds; as the pipeline takes them, where it is in one.
    random_state : int, default=None
        Seed of the order of the rows and of random modules.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net, X = torch.nn.Linear(1, 1), torch.ones(4, 1)
    >>> def train_epoch(model, optimizer, recorder):
    ...     for rows in ([0, 1], [2, 3]):
    ...         recorder.batch(rows)
    ...         optimizer.zero_grad()
    ...         (model(X[rows]) - 1).square().mean().backward()
    ...         optimizer.step()
    >>> probe = ContinueTraining(
    ...     2, train_epoch=train_epoch, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)
    ... )
    >>> probe.run(net, Data(X, X), adapt(net, Data(X, X), Options(loss="mse", params="all")))
    Trajectory(4 steps of SGD, 5 marks, 2 epochs, batches known for 4 steps)
    """

    @checked(
        n_epochs=integer(1),
        train_epoch=NOTHING | function("(model, optimizer, recorder)"),
        optimizer=NOTHING
        | instance("an Optimizer", Optimizer)
        | instance("a list of them", list, tuple)
        | Allowed(_makes_optimizer, ("a callable(parameters) -> Optimizer",)),
        every=integer(1),
        data=NOTHING | Allowed(_is_pair, ("a tuple (X, y)",)),
        random_state=NOTHING | SEED,
    )
    def __init__(
        self,
        n_epochs: int,
        train_epoch: Callable[..., Any] | None = None,
        optimizer: Any = None,
        *,
        every: int = 1,
        data: tuple[Any, Any] | None = None,
        random_state: int | None = None,
    ):
        self.n_epochs = int(n_epochs)
        self.train_epoch = train_epoch
        self.optimizer = optimizer
        self.every = every
        self.data = data
        self.random_state = random_state

    def __repr__(self) -> str:
        return f"ContinueTraining(n_epochs={self.n_epochs!r})"

    def _rows(self, data: Data) -> tuple[Any, ...]:
        """The estimator's rows matter only where the net is trained on them."""
        own = self.train_epoch is not None or self.data is not None
        return () if own else super()._rows(data)

    def _make(self, model: Any, data: Data, whole: Problem) -> Trajectory:
        from sklearn_implicitreg.adapters.sklearn.containers import innermost

        model, rows = innermost(model, data if self.data is None else Data(*self.data))
        first = next(iter(whole.params.values()))
        with preserved_rng(first.device, self.random_state), torch.enable_grad():
            if isinstance(model, nn.Module):
                return self._continue_module(model)
            names = (cls.__name__ for cls in type(model).__mro__)
            library = next((_LIBRARIES[name] for name in names if name in _LIBRARIES), None)
            if library is None:
                raise TypeError(
                    "Expected a torch module, a skorch net or an MLP of scikit-learn to train on, "
                    f"got {type(model).__name__}; analyze it with mode='endpoint', or give the "
                    "iterates of its training to Trajectory.from_iterates."
                )
            if self.train_epoch is not None or self.optimizer is not None:
                raise ValueError(
                    f"Expected no train_epoch and no optimizer with {type(model).__name__}, which "
                    "has its own; leave them out."
                )
            recording = import_module(f"sklearn_implicitreg.trajectory.recording.{library}")
            how = {"n_epochs": self.n_epochs, "every": self.every}
            made: Trajectory = recording.continued(model, rows, whole, **how)
            return made

    def _continue_module(self, model: nn.Module) -> Trajectory:
        if self.train_epoch is None or self.optimizer is None:
            raise ValueError(
                "Expected `train_epoch` and `optimizer` to train a bare module on, got "
                f"train_epoch={self.train_epoch!r} and optimizer={self.optimizer!r}."
            )
        own, optimizer = _copied(model, self.optimizer)
        own.train()
        with record(own, optimizer, every=self.every) as recorder:
            for _ in range(self.n_epochs):
                _call(self.train_epoch, own, optimizer, recorder)
                if recorder.epoch_begun:  # unless train_epoch marked its end
                    recorder.epoch()
        return recorder.trajectory


def _copied(model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
    """Copies that belong together; a compiled module's without what wraps it."""
    plain = inner_module(model)
    if isinstance(optimizer, list | tuple):
        optimizer = [inner_optimizer(one) for one in optimizer]
    else:
        optimizer = inner_optimizer(optimizer)
    if isinstance(optimizer, Optimizer | list):
        own, its = copy.deepcopy((plain, optimizer))
        return own, its
    own = copy.deepcopy(plain)
    made = optimizer(own.parameters())
    each = made if isinstance(made, list | tuple) else [made]
    if not all(isinstance(one, Optimizer) for one in each):
        raise TypeError(
            "Expected `optimizer` to be an Optimizer or to make one from parameters, got "
            f"{type(made).__name__}."
        )
    return own, made


def _call(
    train_epoch: Callable[..., Any], model: nn.Module, optimizer: Any, recorder: Recorder
) -> None:
    """With the recorder where the function takes it."""
    given: tuple[Any, ...] = (model, optimizer, recorder)
    try:
        inspect.signature(train_epoch).bind(*given)
    except TypeError:
        given = given[:2]
    except ValueError:  # a callable whose arguments are not known
        pass
    train_epoch(*given)
