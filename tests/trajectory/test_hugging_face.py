"""Models and the Trainer of Hugging Face against plain loops."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.trajectory import TransformersRecorder
from sklearn_implicitreg.trajectory.batches import batch_of

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("default")

V, DECAY = 23, 0.02
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LONG = {"vocab_size": V, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
BERT = {**SIZES, **LONG, "intermediate_size": 24, "hidden_dropout_prob": 0.0}
BERT |= {"attention_probs_dropout_prob": 0.0}


def gpt2(attention, dropout=0.0):
    rates = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), dropout)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0, attn_implementation=attention, **rates,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(attention):
    config = transformers.LlamaConfig(
        **SIZES, **LONG, intermediate_size=24, num_key_value_heads=1, attn_implementation=attention
    )
    return transformers.LlamaForCausalLM(config)


def opt(attention):
    config = transformers.OPTConfig(
        **SIZES, **LONG, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, pad_token_id=1,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def t5(attention):
    config = transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def masked(attention):
    return transformers.BertForMaskedLM(transformers.BertConfig(**BERT))


def classifier(attention):
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3))


def shifted_loss(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
    """The loss of causal models in the type of the logits, which theirs turns into float32."""
    logits, labels = logits[..., :-1, :].reshape(-1, vocab_size), labels[..., 1:].reshape(-1)
    return aligned_loss(logits, labels, vocab_size, num_items_in_batch)


def aligned_loss(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = cross_entropy(logits.reshape(-1, vocab_size), labels.reshape(-1), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


MODELS = {
    "GPT-2": (gpt2, shifted_loss),
    "Llama": (llama, shifted_loss),
    "OPT": (opt, shifted_loss),
    "T5": (t5, None),
    "BERT masked": (masked, aligned_loss),
    "BERT classes": (classifier, None),
}


def built(name, attention="eager"):
    torch.manual_seed(0)
    make, loss = MODELS[name]
    model = make(attention).double()
    if loss is not None:
        model.loss_function = loss
    return model


def samples(name, n=21, seed=0):
    """Rows of unequal lengths, with some labels that do not count."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        ids = torch.tensor(rng.integers(2, V, rng.integers(4, 13)))
        labels = ids.clone()
        labels[: rng.integers(0, 3)] = -100
        if name == "BERT classes":
            labels = torch.tensor(rng.integers(3))
        elif name == "T5":
            labels = torch.tensor(rng.integers(1, V, rng.integers(2, 7)))
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        found.append(row)
    return found


def collate(items):
    found = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        fill = -100 if key == "labels" else 0
        found[key] = nn.utils.rnn.pad_sequence(values, True, fill) if first.ndim else None
        if not first.ndim:
            found[key] = torch.stack(values)
    return found


def count(model, labels):
    """Labels that the loss of a model is a mean over."""
    own = labels[..., 1:] if getattr(model, "loss_function", None) is shifted_loss else labels
    return int((own != -100).sum())


def plain(model, rows):
    """Gradient of the mean over labels, row by row."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total, mass = dict.fromkeys(named, 0.0), 0
    for row in rows:
        n = count(model, row["labels"])
        loss = model(**collate([row])).loss
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, g in zip(named, grads, strict=True):
            total[name] = total[name] + (0.0 if g is None else n * g)
        mass += n
    return {name: torch.as_tensor(t / mass) for name, t in total.items()}


def distance(found, wanted):
    size = max(float(t.norm()) for t in wanted.values())
    return max(float((found[name] - t).norm()) for name, t in wanted.items()) / size


# What a model computes in float32 whatever its type is: norms of Llama and T5, attention of OPT.
ROUNDING = {"Llama": 1e-6, "T5": 1e-6, "OPT": 1e-9}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_of_the_mean_over_labels(name, attention):
    model, rows = built(name, attention).eval(), samples(name)
    if name == "GPT-2":
        model.transformer.wpe.requires_grad_(False)
    X = DataLoader(rows, batch_size=4, collate_fn=collate)
    problem = adapt(model, Data(X, None), Options(params="all"))
    wanted = plain(model, rows)
    assert problem.params.keys() == wanted.keys()  # tied ones once, frozen ones not
    assert distance(problem.gradient().value, wanted) < ROUNDING.get(name, 1e-12)
    assert problem.gradient().weight == sum(count(model, row["labels"]) for row in rows)


def test_their_own_loss_rounds_to_float32():
    torch.manual_seed(0)
    model, rows = gpt2("sdpa", dropout=0.1).double(), samples("GPT-2")
    X = DataLoader(rows, batch_size=4, collate_fn=collate)
    problem = adapt(model, Data(X, None), Options(params="all"))
    assert problem.eps == torch.finfo(torch.float32).eps
    model.eval().loss_function = shifted_loss
    assert distance(problem.gradient().value, plain(model, rows)) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_has_second_derivatives(attention):
    model, rows = built("GPT-2", attention).eval(), samples("GPT-2", 6)
    X = DataLoader(rows, batch_size=6, collate_fn=collate)
    problem = adapt(model, Data(X, None), Options(params="all"))
    g = problem.gradient().value
    found, step = problem.hvp(g), 1e-5
    name = "transformer.h.0.attn.c_attn.weight"
    ends = [
        problem.at({n: t + s * g[n] for n, t in problem.params.items()}).gradient().value[name]
        for s in (step, -step)
    ]
    difference = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found[name], difference, rtol=1e-5, atol=1e-8)


def trained(tmp_path, model, rows, accumulated=1, optimizer=None, resumed=None, **settings):
    """A recorded run of the Trainer."""
    settings = {"save_strategy": "no", **settings}
    args = transformers.TrainingArguments(
        output_dir=tmp_path, num_train_epochs=2, per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulated, learning_rate=1e-2, weight_decay=DECAY,
        lr_scheduler_type="constant", max_grad_norm=0, report_to=[],
        disable_tqdm=True, use_cpu=True, logging_steps=1, **settings,
    )  # fmt: skip
    recorder = TransformersRecorder(gradients=True)
    trainer = transformers.Trainer(
        model, args, train_dataset=rows, data_collator=collate, callbacks=[recorder],
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resumed)
    assert not model._forward_pre_hooks
    return recorder.trajectory_, DataLoader(rows, batch_size=4, collate_fn=collate)


def fitted(model, X, trajectory, **settings):
    settings = {"params": lambda name, t: t.ndim > 1 and "bias" not in name, **settings}
    return ImplicitRegularizationEstimator(
        model, family="weight_decay", mode="trajectory", trajectory=trajectory,
        reference="batch", **settings,
    ).fit(X)  # fmt: skip


SIZES_OF = {1: [4, 4, 4, 4, 4, 1], 4: [16, 5]}  # of the steps of an epoch of 21 rows


@pytest.mark.parametrize("accumulated", SIZES_OF)
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "T5", "BERT classes"])
def test_the_decay_of_a_trainer(tmp_path, name, accumulated):
    """Its losses are sums over the labels of a step, of which it may count others, or means."""
    model, rows = built(name), samples(name)
    trajectory, X = trained(tmp_path, model, rows, accumulated)
    est = fitted(model, X, trajectory)
    np.testing.assert_allclose(est.coef_, DECAY, rtol=1e-6 if name in ROUNDING else 1e-10)
    assert est.verdict_ == "supported"
    assert [step.batch_size for step in trajectory.steps] == SIZES_OF[accumulated] * 2


def test_the_factors_of_a_trainer_are_those_of_its_count(tmp_path):
    """GPT-2 is the mean over labels without each row's first; the Trainer may count all."""
    model, rows = built("GPT-2"), samples("GPT-2")
    trajectory, X = trained(tmp_path, model, rows, 4)
    problem = adapt(model, Data(X, None), Options(params="all"))
    (window, *_) = trajectory.windows(None)
    total = {}
    for batch, share in window.batches(problem) or []:
        (step,) = batch.steps
        there = problem.at(window.start.weights)
        own = there.seeing(batch_of(step.seen[0])).gradient().value
        total = {n: total.get(n, 0.0) + share * g for n, g in own.items()}
    assert distance(total, window.mean("consumed")) < 1e-12


def test_epochs_that_drop_their_last_batch(tmp_path):
    model, rows = built("GPT-2"), samples("GPT-2")
    trajectory, X = trained(tmp_path, model, rows, 2, dataloader_drop_last=True)
    assert [step.batch_size for step in trajectory.steps] == [8, 8, 4] * 2
    est = fitted(model, X, trajectory)
    np.testing.assert_allclose(est.coef_, DECAY, rtol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_resumed_in_an_epoch(tmp_path, smoothing):
    """The batches before the checkpoint are passed over."""
    rows = samples("GPT-2")
    how = {"save_strategy": "steps", "save_steps": 2, "label_smoothing_factor": smoothing}
    trained(tmp_path, built("GPT-2"), rows, 2, **how)
    checkpoint = tmp_path / "checkpoint-2"
    trajectory, _ = trained(tmp_path, built("GPT-2"), rows, 2, resumed=checkpoint, **how)
    assert [step.batch_size for step in trajectory.steps] == [5, 8, 8, 5]
    assert all(bool(step.seen) == (not smoothing) for step in trajectory.steps)


def test_where_labels_are_not_seen_only_sizes_are_known(tmp_path):
    model, rows = built("GPT-2"), samples("GPT-2")
    trajectory, _ = trained(tmp_path, model, rows, label_smoothing_factor=0.1)
    assert [step.batch_size for step in trajectory.steps] == [4, 4, 4, 4, 4, 1] * 2
    assert not any(step.seen or step.rows is not None for step in trajectory.steps)


def test_a_decay_for_each_block_and_type(tmp_path):
    decays = {"transformer.h.0": 0.02, "transformer.h.1": 0.05, "transformer.w": 0.01}
    model, rows = built("GPT-2"), samples("GPT-2")
    named = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    groups = [
        {"params": [p for n, p in named.items() if n.startswith(start)], "weight_decay": w}
        for start, w in decays.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    trajectory, X = trained(tmp_path, model, rows, optimizer=optimizer)
    est = fitted(model, X, trajectory, params="decay", group_by="block")
    found = dict(zip(est.term_names_, est.coef_, strict=True))
    assert found == pytest.approx(
        {
            "weight_decay[transformer.wte]": 0.01,
            "weight_decay[transformer.wpe]": 0.01,
            "weight_decay[transformer.h.0]": 0.02,
            "weight_decay[transformer.h.1]": 0.05,
        },
        rel=1e-10,
    )
