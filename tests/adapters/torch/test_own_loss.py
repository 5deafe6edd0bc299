"""Modules that return their own loss, and batches that are dicts, as Hugging Face has them."""

import copy
import dataclasses
from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.trajectory import record

DECAY = 0.02
N, LENGTH, WORDS, CLASSES = 24, 5, 11, 3
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, WORDS, (N, LENGTH), generator=GENERATOR)
MASK = torch.ones(N, LENGTH, dtype=torch.long)
LABELS = TOKENS.sum(1) % CLASSES
COLLATED = {"input_ids": TOKENS, "attention_mask": MASK}


@dataclasses.dataclass
class ModelOutput(OrderedDict):
    """Dict whose items are attributes, as transformers defines it."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)


class Classifier(nn.Module):
    """Mean of embeddings, a layer, and the loss where labels are given."""

    kind = ModelOutput

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, 4, dtype=torch.float64)
        self.head = nn.Linear(4, CLASSES, dtype=torch.float64)
        self.problem_type = None

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        words = self.embedding(input_ids) * mask[..., None]
        logits = self.head(words.sum(1) / mask.sum(1, keepdim=True))
        return self.returned(logits, labels)

    def returned(self, logits, labels):
        loss = None
        if labels is not None:
            if self.problem_type is None:  # as transformers does, by the type of the labels
                self.problem_type = "single" if labels.dtype == torch.long else "several"
            assert self.problem_type == "single"
            loss = nn.functional.cross_entropy(logits, labels)
        return self.kind(loss=loss, logits=logits)


class AsTuple(Classifier):
    def kind(self, loss, logits):
        return logits if loss is None else (loss, logits)


class AsDict(Classifier):
    kind = dict


class ByKeyword(Classifier):
    def forward(self, input_ids, **kwargs):
        return super().forward(input_ids, **kwargs)


class PerRow(Classifier):
    def returned(self, logits, labels):
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")
        return ModelOutput(loss, logits)


def rows_of(label="labels"):
    every = zip(TOKENS, MASK, LABELS.tolist(), strict=True)
    return [{"input_ids": t, "attention_mask": m, label: y} for t, m, y in every]


class MapStyle:
    """Rows by number, of no class of torch."""

    def __init__(self, label="labels"):
        self.rows = rows_of(label)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class OfTorch(MapStyle, Dataset):
    pass


def in_user_dict(rows):
    """What a tokenizer's collator returns: no dict, but like one."""
    return UserDict(torch.utils.data.default_collate(rows))


DATA = {
    "loader": lambda: (DataLoader(rows_of(), batch_size=8),),
    "label": lambda: (DataLoader(rows_of("label"), batch_size=8),),
    "user dict": lambda: (DataLoader(rows_of(), batch_size=8, collate_fn=in_user_dict),),
    "list": lambda: (rows_of(),),
    "map": lambda: (MapStyle(),),
    "dataset": lambda: (OfTorch(),),
    "tensors": lambda: (COLLATED, LABELS),
    "arrays": lambda: ({k: v.numpy() for k, v in COLLATED.items()}, LABELS.numpy()),
    "first argument": lambda: (TOKENS, LABELS),
    "first arguments": lambda: ((TOKENS, MASK), LABELS),
}


def trained(model, **how):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=DECAY)
    with record(model, optimizer, **how) as recorder:
        for _ in range(3):
            for rows in torch.randperm(N).split(8):
                recorder.batch(rows)
                optimizer.zero_grad()
                logits = model(TOKENS[rows], attention_mask=MASK[rows], labels=LABELS[rows])
                logits = logits[1] if isinstance(logits, tuple) else logits["logits"]
                nn.functional.cross_entropy(logits, LABELS[rows]).backward()
                optimizer.step()
            recorder.epoch()
    return recorder.trajectory


def fitted(model, data, **how):
    return ImplicitRegularizationEstimator(model, **{"params": "all"} | how).fit(*data)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("loss", ["auto", None])
def test_the_loss_that_a_model_returns(kind, loss):
    model = Classifier()
    trajectory = trained(model)
    model.problem_type = None
    before = copy.deepcopy(model.state_dict())
    est = fitted(
        model,
        DATA[kind](),
        family="weight_decay",
        mode="trajectory",
        reference="batch",
        trajectory=trajectory,
        loss=loss,
    )
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert est.verdict_ == "supported"
    assert model.problem_type is None
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("kind", [Classifier, AsTuple, AsDict, ByKeyword, PerRow])
def test_ways_to_return_it(kind):
    model = kind()
    logits = Classifier()
    logits.load_state_dict(model.state_dict())
    by_hand = fitted(logits, DATA["tensors"](), loss=_of_logits)
    assert fitted(model, DATA["loader"]()).coef_[0] == pytest.approx(by_hand.coef_[0], rel=1e-12)
    assert fitted(model, DATA["loader"]()).r2_ == pytest.approx(by_hand.r2_, rel=1e-9)


def _of_logits(output, target):
    return nn.functional.cross_entropy(output.logits, target)


def test_gradient_of_it_against_finite_differences():
    model = Classifier()
    found = equations(model, rows_of(), families=["l2"], params="all").target.to_numpy()
    parameters = list(model.parameters())
    with torch.no_grad():
        for place in (0, 7, -1):
            index = place % len(found)
            flat, at = next(
                (p.view(-1), index - start)
                for p, start in zip(parameters, _starts(parameters), strict=True)
                if start <= index < start + p.numel()
            )
            values = []
            for step in (1e-6, -2e-6):
                flat[at] += step
                values.append(float(model(**COLLATED, labels=LABELS).loss))
            flat[at] += 1e-6
            assert found[index] == pytest.approx(-(values[0] - values[1]) / 2e-6, abs=1e-8)


def _starts(parameters):
    return np.cumsum([0, *[p.numel() for p in parameters][:-1]])


class Language(nn.Module):
    """Next word of each, the mean over those that are not ignored."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, 4, dtype=torch.float64)
        self.head = nn.Linear(4, WORDS, dtype=torch.float64)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embedding(input_ids))
        loss = None
        if labels is not None:
            shifted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = nn.functional.cross_entropy(*shifted, ignore_index=-100)
        return ModelOutput(loss, logits)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_language_models(ragged):
    model, labels = Language(), TOKENS.clone()
    if ragged:
        labels[::3, 2:] = -100
    rows = [{"input_ids": t, "labels": y} for t, y in zip(TOKENS, labels, strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY)
    with record(model, optimizer, data=rows) as recorder:
        for batch in DataLoader(rows, batch_size=8, shuffle=True):
            recorder.batch(batch)
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    est = fitted(
        model,
        (DataLoader(rows, batch_size=8),),
        family="weight_decay",
        mode="trajectory",
        trajectory=recorder.trajectory,
        reference="batch",
    )
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    whole = fitted(model, (rows,), batch_size=len(rows))  # the mean that the model returns
    np.testing.assert_allclose(fitted(model, (rows,), batch_size=8).coef_, whole.coef_, rtol=1e-12)


class Answers(nn.Module):
    """Two targets under names of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x, start_positions=None, end_positions=None):
        ends = self.head(x)
        given = torch.stack([start_positions, end_positions], 1).double()
        return {"loss": (ends - given).square().mean(), "ends": ends}


def test_several_labels():
    x = torch.randn(N, 3, generator=GENERATOR).double()
    ends = torch.randint(0, 4, (N, 2), generator=GENERATOR)
    rows = [
        {"x": a, "start_positions": b, "end_positions": c}
        for a, (b, c) in zip(x, ends, strict=True)
    ]
    model, plain = Answers(), nn.Linear(3, 2).double()
    plain.load_state_dict(model.head.state_dict())
    own = fitted(model, (rows,))
    assert own.coef_[0] == pytest.approx(fitted(plain, (x, ends.double()), loss="mse").coef_[0])


def test_r_factors_and_choice_of_a_family_take_it_too():
    model = Classifier()
    trajectory = trained(
        model, families=["weight_decay"], data=DataLoader(rows_of(), batch_size=8), params="all"
    )
    how = {"mode": "trajectory", "trajectory": trajectory, "family": "weight_decay"}
    reduced = fitted(model, DATA["list"](), window="epoch", **how)
    model = Classifier()
    kept = how | {"trajectory": trained(model), "window": "epoch"}
    assert reduced.coef_[0] == pytest.approx(fitted(model, DATA["list"](), **kept).coef_[0])
    search = ImplicitRegularizationCV(model, families=["l2", "l1"], params="all")
    assert search.fit(rows_of()).best_name_ in ("l2", "l1")


class Silent(nn.Module):
    """Takes labels and returns no loss."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, x, labels=None):
        return self.head(x)


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows_of()


BAD = {
    "no loss in the outputs": (
        lambda: (Silent(), (torch.ones(4, 2), torch.ones(4, 1))),
        {},
        "Expected a model that returns its loss where labels are given, as `output.loss`, got Ten",
    ),
    "no labels in the rows": (
        lambda: (Classifier(), ([{"input_ids": t} for t in TOKENS],)),
        {},
        r"Expected batches \(inputs, target\) or dicts with 'labels', got a dict of \['input_ids'",
    ),
    "a named loss": (
        lambda: (Classifier(), (rows_of(),)),
        {"loss": "cross_entropy"},
        "got ModelOutput; give a callable .* or loss='auto' where the model returns its own",
    ),
    "no argument for labels": (
        lambda: (nn.Linear(2, 1), (torch.ones(4, 2), torch.ones(4, 1))),
        {"loss": None},
        "does not say what it was trained with: give `loss=`",
    ),
    "labels beside a dict": (
        lambda: (Classifier(), (rows_of(), LABELS)),
        {},
        "Expected y=None with a Dataset or DataLoader",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, how, message = BAD[case]
    model, data = make()
    with pytest.raises((TypeError, ValueError), match=message):
        fitted(model, data, **how)


class Squares(nn.Module):
    """A mean over rows whose labels are numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x, labels=None):
        return {"loss": (self.head(x) - labels).square().mean()}


def test_weights_of_rows_need_a_loss_of_rows_or_of_integer_labels():
    weight = np.arange(N) + 1.0
    numbers = torch.randn(N, 3, generator=GENERATOR).double()
    with pytest.raises(ValueError, match="give a callable.*one number per row as `loss=`"):
        fitted(Squares(), ({"x": numbers}, numbers[:, :1], weight))
    by_hand = fitted(Classifier(), (COLLATED, LABELS, weight), loss=_of_rows)
    found = fitted(Classifier(), (COLLATED, LABELS, weight))
    assert found.coef_[0] == pytest.approx(by_hand.coef_[0], rel=1e-12)
    assert fitted(PerRow(), (COLLATED, LABELS, weight)).coef_[0] == pytest.approx(by_hand.coef_[0])


def _of_rows(output, target):
    return nn.functional.cross_entropy(output.logits, target, reduction="none")


def test_a_stream_of_dicts():
    own = fitted(Classifier(), (DataLoader(Stream(), batch_size=8),))
    assert own.coef_[0] == pytest.approx(fitted(Classifier(), (rows_of(),)).coef_[0])
