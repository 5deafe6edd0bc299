"""Words and code of the next steps: how a trajectory is made, and the next fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sklearn_implicitreg.results.situation import Situation

_N_EPOCHS, _N_EPOCHS_MASKS = 5, 20  # to train on; masks are noisier than batches
_LINE = 100
_LOSSES = {
    "mse": "mse_loss",
    "mae": "l1_loss",
    "huber": "huber_loss",
    "bce": "binary_cross_entropy",
    "bce_with_logits": "binary_cross_entropy_with_logits",
    "poisson_nll": "poisson_nll_loss",
    "cross_entropy": "cross_entropy",
    "nll": "nll_loss",
}
_OF_LABELS = ("cross_entropy", "nll")
_PROBE = "from sklearn_implicitreg.trajectory import ContinueTraining\n"
_LOOP = """
def train_epoch(model, optimizer, recorder):  # as in your training, penalties too
    for rows in {rows}:
        recorder.batch(rows)
        {batch}
        optimizer.zero_grad()
        {loss}.backward()
        optimizer.step()
"""
_RECORDERS = {
    "transformers": (
        "from sklearn_implicitreg.trajectory import TransformersRecorder\n\n"
        "recorder = TransformersRecorder()\n"
        "trainer.add_callback(recorder)\n"
        "trainer.train()  # with the trainer of the training\n"
    ),
    "lightning": (
        "import lightning\n"
        "from sklearn_implicitreg.trajectory import LightningRecorder\n\n"
        "recorder = LightningRecorder()\n"
        "trainer = lightning.Trainer(max_epochs={n}, callbacks=[recorder])\n"
        "trainer.fit(est.model, loader)  # with the loader of the training\n"
    ),
}


def fields_of(s: Situation) -> Mapping[str, object]:
    """What the texts of the rules are filled in with."""
    record, trajectory = _record(s)
    chosen = _reference(s)
    n = _N_EPOCHS_MASKS if s.lacks_dropout else _N_EPOCHS
    passes = {
        "applied": "no pass over the data",
        "batch": "a pass over the data for each epoch",
    }
    search = _search(s, _families(s))
    single = _search(s, [name for name in _families(s) if "+" not in name])
    prefix = "est = est.best_estimator_\n" if s.searched else ""
    family, imports = _family(s)
    changes = _changes(s, trajectory, chosen, family)
    before = (prefix + imports) * ("family=" in changes)
    if "trajectory=" in changes:
        before += record
    return {
        "rows": s.rows,
        "again": _broken(changes, s.rows),
        "before": before,
        "record_title": "Train a copy on, and read its steps"
        if s.kind not in _RECORDERS
        else "Train on with a recorder, and read the steps",
        "because": "the optimizer's own gradient shows what it adds, such as its decay"
        if chosen == "applied"
        else "the gradient of the same batch shows exactly what was added to its loss",
        "reference": chosen,
        "training": f"{n} epochs of training",
        "passes": passes.get(chosen, "a pass over the data for each window"),
        "rates": ", ".join(f"{rate:g}" for rate in s.rates),
        "cut": s.cut,
        "path": s.path[1],
        "family": "est.family",
        "n_endpoints": max(20, 2 * s.result.n_equations),
        "search": search,
        "search_parts": _search(s, _parts(s)) if _parts(s) else search,
        "fewer": _dropped(s.rows) if s.est.group_by is not None else single,
        "search_passes": passes.get(s.reference if s.along else "", "one pass over the data"),
    }


def _reference(s: Situation) -> str:
    """The reference that the next fit takes."""
    if s.scale_invariant:
        return "applied"
    if s.can_record or s.records_again:
        if s.kind == "transformers":
            return "applied"
        return "applied" if s.decays and not s.lacks_dropout else "batch"
    if s.evidence or s.better_reference or s.in_the_loss:
        return s.exact_reference or "gradient"
    return s.reference


def _changes(s: Situation, trajectory: str, chosen: str, family: str) -> str:
    """Parameters of the next fit."""
    if s.layers_differ:
        return 'group_by="layer"'
    window = 'window="epoch"'
    if s.evidence:
        epochs = f", {window}" if s.epochs else ""
        return f'mode="trajectory", reference="{chosen}"{epochs}'
    if s.can_record or s.records_again:
        mode = f'mode="trajectory", trajectory={trajectory}, '
        return f'{mode}reference="{chosen}", {window}' + f", family={family}" * bool(family)
    changed = [f'reference="{chosen}"'] if chosen != s.reference else []
    return ", ".join([*changed, *([f"family={family}"] if family else [])])


def _family(s: Situation) -> tuple[str, str]:
    """The family of the next fit, with the dropout of the model, and what it imports."""
    if not s.lacks_dropout or s.scale_invariant:
        return "", ""
    dropout = f"Dropout({s.rates[0]:g})" if len(s.rates) == 1 else "Dropout()"
    plain = {name.partition("[")[0] for name in s.result.term_names} - {"minibatch"}
    module = "from sklearn_implicitreg.penalties import"
    if plain <= {"l2", "weight_decay"}:
        return f"WeightDecay() + {dropout}", f"{module} Dropout, WeightDecay\n"
    return f"[est.family, {dropout}]", f"{module} Dropout\n"


def _families(s: Situation) -> list[str]:
    """Names of families that a search compares."""
    names = ["l2", "l1", "l2+l1", "power"]
    if s.rates and s.along and s.reference != "applied":
        names += ["dropout", "l2+dropout"]
    return names


def _parts(s: Situation) -> list[str]:
    """The parts of the family as code has them; none of a single one."""
    given = s.est.family
    if isinstance(given, str):
        names = [name.strip() for name in given.split("+")]
        return names if len(names) > 1 else []
    if isinstance(given, list | tuple):
        return ["*est.family"]
    return ["*est.family.parts"] if hasattr(given, "parts") else []


def _search(s: Situation, names: list[str]) -> str:
    """Code that compares families, with the one of the fit where it is none of them."""
    if s.searched:
        return (
            "asked = est.families\n"
            "if not isinstance(asked, dict):\n"
            "    asked = {str(family): family for family in asked}\n"
            f"more = {_quoted(names)}\n"
            f"est.set_params(families=asked | {{name: name for name in more}}).fit({s.rows})"
        )
    given, parts = s.est.family, names == _parts(s)
    own = isinstance(given, str) and given in names
    listed = _quoted(names if own or parts or s.structured else ["est.family", *names])
    return (
        "from sklearn_implicitreg import ImplicitRegularizationCV\n\n"
        "given = est.get_params(deep=False)\n"
        'shared = {name: given[name] for name in given if name not in ("model", "family")}\n'
        f"families = {listed}\n"
        "search = ImplicitRegularizationCV(est.model, families=families, **shared)\n"
        f"est = search.fit({s.rows})"
    )


def _record(s: Situation) -> tuple[str, str]:
    """Code that makes a trajectory by the library at hand, and the trajectory's name."""
    n = _N_EPOCHS_MASKS if s.lacks_dropout else _N_EPOCHS
    if s.kind in _RECORDERS:
        return _RECORDERS[s.kind].format(n=n) + "\n", "recorder"
    if s.kind in ("skorch", "mlp"):
        return f"{_PROBE}\nprobe = ContinueTraining({n})\n", "probe"
    loop = "".join(_loop(s))
    return f"{loop}\nprobe = ContinueTraining({n}, train_epoch, optimizer)\n", "probe"


def _loop(s: Situation) -> Iterator[str]:
    """A training loop of plain torch on the rows of the fit."""
    loss = s.est.loss
    known = isinstance(loss, str) and loss in _LOSSES
    if s.rows == "X":  # a loader or a data set
        loader = "X" if s.rows_are == "loader" else "loader"
        yield "import torch\n" if known else ""
        yield "from torch.utils.data import DataLoader\n" if loader != "X" else ""
        yield _PROBE
        if loader != "X":
            yield "\nloader = DataLoader(X, batch_size=32, shuffle=True)\n"
        rows = f"{loader}.batch_sampler"
        batch = f"{loader}.collate_fn([{loader}.dataset[i] for i in rows])"
    else:
        yield f"import torch\n{_PROBE}\n{_tensors(s)}"
        rows, batch = "torch.randperm(len(data)).split(32)", "data[rows], wanted[rows]"
    lines = [f"inputs, targets = {batch}"]
    if known and loss not in _OF_LABELS and s.rows != "X":
        lines.append("outputs = model(inputs)")
        full = f"torch.nn.functional.{_LOSSES[loss]}(outputs, targets.view_as(outputs))"
    elif known:
        full = f"torch.nn.functional.{_LOSSES[loss]}(model(inputs), targets)"
    else:
        full = "est.loss(model(inputs), targets).mean()"
    yield _LOOP.format(rows=rows, batch="\n        ".join(lines), loss=full)


def _tensors(s: Situation) -> str:
    """Lines that make tensors of X and y, as the model takes them."""
    if s.rows_are == "tensors":
        return "data, wanted = X, y\n"
    first = None if s.module is None else next(iter(s.module.parameters()), None)
    kind = "torch.float32" if first is None else first.dtype
    label = "torch.long" if s.est.loss in _OF_LABELS else kind
    return f"data = torch.as_tensor(X, dtype={kind})\nwanted = torch.as_tensor(y, dtype={label})\n"


def _quoted(names: list[str]) -> str:
    return f"[{', '.join(name if '.' in name else repr(name) for name in names)}]".replace("'", '"')


def _broken(changes: str, rows: str) -> str:
    """The next fit, on several lines where one is too long."""
    line = f"est.set_params({changes}).fit({rows})"
    return line if len(line) <= _LINE else f"est.set_params(\n    {changes}\n).fit({rows})"


def _dropped(rows: str) -> str:
    return f"est.set_params(group_by=None).fit({rows})"
