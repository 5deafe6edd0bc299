"""Penalties on the outputs of a model, each a mean over rows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import ModuleCall, RowBatch
from sklearn_implicitreg.problem.frozen import rebuilt
from sklearn_implicitreg.problem.parameters import FLAG, instance, shown


class OutputL2(Penalty):
    """Squared outputs, ``R = mean_i sum_k f_k(x_i)^2`` over the rows.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(net.weight)
    >>> batch = RowBatch.of(net, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> OutputL2().rows(batch)["output_l2"].tolist()
    [5.0, 9.0]
    """

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """``sum_k f_k^2`` of every row."""
        outputs = _outputs(batch)
        return {"output_l2": outputs.reshape(batch.n_rows, -1).square().sum(1)}


class OutputEntropy(Penalty):
    """Confidence penalty, ``R = mean_i sum_k p_k log p_k``: minus the entropy of the outputs.

    The coefficient is ``beta`` of the confidence penalty [1]_. Outputs are logits or logarithms of
    probabilities of the classes, on the second axis; a single output is the logit of two classes.

    References
    ----------
    .. [1] Pereyra, Tucker, Chorowski, Kaiser and Hinton (2017), Regularizing Neural Networks by
       Penalizing Confident Output Distributions.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> value = OutputEntropy().rows(RowBatch.of(net, torch.zeros(1, 2)))["output_entropy"]
    >>> round(value.item(), 4)  # log 1/2
    -0.6931
    """

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """``sum_k p_k log p_k`` of every row, the mean over further axes of the outputs."""
        log_p = _logits(_outputs(batch)).log_softmax(1)
        return {"output_entropy": _by_rows((log_p.exp() * log_p).sum(1))}


class LabelSmoothing(Penalty):
    """What label smoothing adds to a cross-entropy, ``R = mean_i [z_iy - mean_k z_ik]``.

    z are the logits and y the class of the row: R is the cross-entropy towards the uniform
    distribution less that towards the labels, so the coefficient is ``label_smoothing`` of torch's
    ``CrossEntropyLoss`` [1]_, and other terms keep theirs. Outputs and labels have the classes on
    the second axis; a single output is the logit of two classes, whose labels are 0 and 1. Class
    weights and ignored labels do not count here.

    References
    ----------
    .. [1] Szegedy, Vanhoucke, Ioffe, Shlens and Wojna (2016), Rethinking the Inception
       Architecture for Computer Vision.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(net.weight)
    >>> batch = RowBatch.of(net, torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
    >>> LabelSmoothing().rows(batch)["label_smoothing"].tolist()
    [1.0]
    """

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """``z_y - mean_k z_k`` of every row, the mean over further axes of the outputs."""
        z = _logits(_outputs(batch))
        value = (_shares(batch.prepared, z) * z).sum(1) - z.mean(1)
        return {"label_smoothing": _by_rows(value)}


class KLToReference(Penalty):
    """Divergence from the outputs of another model, ``R = mean_i KL(p_ref(x_i) | p(x_i))``.

    With the reference first, as in distillation and learning without forgetting [1]_; or last,
    ``KL(p | p_ref)``, as in the tuning of language models. Outputs are logits or logarithms of
    probabilities of the classes, on the second axis; a single output is the logit of two classes.

    Parameters
    ----------
    model : torch.nn.Module
        The reference, which takes the same inputs; it is called in evaluation mode.
    reverse : bool, default=False
        Whether the reference comes last.

    References
    ----------
    .. [1] Li and Hoiem (2016), Learning without Forgetting.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 2)
    >>> batch = RowBatch.of(net, torch.ones(1, 2))
    >>> float(KLToReference(net).rows(batch)["kl_to_reference"].detach())
    0.0
    """

    _allowed: ClassVar = {"model": instance("a torch module", nn.Module), "reverse": FLAG}

    def __init__(self, model: Any, reverse: bool = False):
        self.model = model
        self.reverse = reverse

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """Divergence of every row, the mean over further axes of the outputs."""
        log_p = _logits(_outputs(batch)).log_softmax(1)
        # A copy of the structure, which may be switched to evaluation mode.
        module = rebuilt(self.model, _itself, _itself).eval()
        stored = [*module.named_parameters(), *module.named_buffers()]
        own = {n: t.detach().to(log_p) if t.is_floating_point() else t for n, t in stored}
        with torch.no_grad():
            outputs = ModuleCall(module)({n: t.clone() for n, t in own.items()}, batch.inputs)
            reference = _logits(outputs).log_softmax(1).to(log_p)
        if reference.shape != log_p.shape:
            raise ValueError(
                f"Expected outputs of the reference of shape {tuple(log_p.shape)}, got "
                f"{tuple(reference.shape)}; give a model with the same classes."
            )
        first, last = (log_p, reference) if self.reverse else (reference, log_p)
        # At equal outputs exactly zero.
        return {"kl_to_reference": _by_rows((first.exp() * (first - last)).sum(1))}

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        return f"KLToReference(<{type(self.model).__name__}>{', reverse=True' * self.reverse})"


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _outputs(batch: RowBatch) -> Tensor:
    """Outputs of the rows, which must be one tensor."""
    outputs = batch.outputs
    if not isinstance(outputs, Tensor) or not outputs.ndim or len(outputs) != batch.n_rows:
        raise ValueError(
            f"Expected a model that returns one tensor with {batch.n_rows} rows for this penalty, "
            f"got {shown(outputs)}; write a penalty with rows(batch) that picks one."
        )
    return outputs


def _logits(outputs: Tensor) -> Tensor:
    """Logits of shape (n, K, ...), those of two classes where there is one output."""
    z = outputs.reshape(len(outputs), 1) if outputs.ndim == 1 else outputs
    return torch.cat([torch.zeros_like(z), z], dim=1) if z.shape[1] == 1 else z


def _shares(target: Any, z: Tensor) -> Tensor:
    """Probabilities of the classes from numbers of classes, or as they are given."""
    words = "labels of classes, or their probabilities, in y"
    if not isinstance(target, Tensor):
        raise ValueError(f"Expected {words} for label smoothing, got {shown(target)}.")
    if target.is_floating_point() and target.shape == z.shape:
        shares = target.to(z)
    else:
        labels = target.reshape(len(z), *z.shape[2:]).long()
        n = z.shape[1]
        if not bool(
            ((labels == target.reshape(labels.shape)) & (labels >= 0) & (labels < n)).all()
        ):
            raise ValueError(
                f"Expected {words} for label smoothing, each 0 to {n - 1}, got {shown(target)}."
            )
        shares = nn.functional.one_hot(labels, n).movedim(-1, 1).to(z)
    if not torch.allclose(shares.sum(1), torch.ones_like(shares.sum(1)), atol=1e-5):
        raise ValueError(f"Expected {words} that add up to one in each row, got {shown(target)}.")
    return shares


def _by_rows(values: Tensor) -> Tensor:
    """Mean over all axes but the first."""
    return values.reshape(len(values), -1).mean(1)
