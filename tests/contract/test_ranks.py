"""Models on several ranks: the fits of one process over all rows, and errors on every rank."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
import torch.multiprocessing
from rank_cases import (
    FAULTS,
    N_RANKS,
    PLACES,
    cases_of,
    in_one_process,
    work,
    work_on_trajectories,
)
from rank_trajectories import TRAJECTORIES, WAYS, fits, of_trajectories

import sklearn_implicitreg

EXACT = 1e-12


def on_ranks(function, folder):
    """What each of two processes found."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(function, (str(folder), store.port), nprocs=N_RANKS)
    return [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(N_RANKS)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, and one."""
    return on_ranks(work, tmp_path_factory.mktemp("ranks")), in_one_process()


def same(first, second, rtol=0.0, atol=0.0):
    """Assert that what two fits give is the same."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, str) or np.asarray(value).dtype.kind in "OU":
            assert np.array_equal(value, second[name]), name
        else:
            np.testing.assert_allclose(value, second[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("place", "case"), [(place, case) for place in PLACES for case in cases_of(place)]
)
def test_ranks_have_the_same_bits_and_the_numbers_of_one_process(found, place, case):
    ranks, one = found
    same(*(own[place, case] for own in ranks))
    same(ranks[0][place, case], one[case], EXACT)


@pytest.mark.parametrize(
    ("place", "way", "fit"),
    [(place, way, fit) for place in TRAJECTORIES for way in WAYS for fit in fits(place, way, True)],
)
def test_recorded_ranks_have_the_same_bits_and_the_numbers_of_one_process(found, place, way, fit):
    ranks, one = found
    same(*(own[place, "trajectory", way, fit] for own in ranks))
    # Where the equations hold exactly, the rest is rounding.
    same(ranks[0][place, "trajectory", way, fit], one["one", "trajectory", way, fit], EXACT, 1e-15)


@pytest.mark.slow
def test_all_fits_of_recorded_ranks(tmp_path):
    ranks, one = on_ranks(work_on_trajectories, tmp_path), of_trajectories()
    for place in TRAJECTORIES:
        for way in WAYS:
            for fit in fits(place, way, few=False):
                same(*(own[place, "trajectory", way, fit] for own in ranks))
                expected = one["one", "trajectory", way, fit]
                same(ranks[0][place, "trajectory", way, fit], expected, EXACT, 1e-15)


@pytest.mark.parametrize("place", TRAJECTORIES)
def test_a_fault_along_a_trajectory_is_an_error_on_all_ranks(found, place):
    first, second = (own[place, "trajectory", "faults"] for own in found[0])
    same(first.pop("next"), second.pop("next"))
    assert "rank 1 raised" in first.pop("rows") and "Error" in second.pop("rows")
    assert first == second
    assert first.pop("kept") == "True"
    assert first.pop("loop") == "RuntimeError: a loop that raises"
    assert all(words.startswith("ValueError: Expected ") for words in first.values())
    assert "model=net.module_" in first["skorch"]
    assert "got a probe" in first["probe"] and "one process" in first["families"]
    if place == "fsdp":
        assert "all trained tensors" in first["some"]
        assert "single weights" in first["reduced"] and "no such mean" in first["labels"]
    else:
        assert "a mean over labels as the loss that the model returns" in first["labels"]
    steps = "the same numbers of recorded steps on all 2 ranks, got 9 on rank 0 and 8 on rank 1"
    assert steps in first["steps"]


def test_blocks_of_rows_in_shards_are_those_of_whole_tensors(found):
    for own in found[0]:
        same(own["fsdp", "noise"], own["ddp", "noise"], 1e-9)


@pytest.mark.parametrize("place", ["ddp", "fsdp"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_rank_is_an_error_on_all(found, place, fault):
    first, second = (own[place, "faults"][fault] for own in found[0])
    assert first.startswith(("ValueError: Expected", "ParameterError: Expected"))
    assert "Error" in second
    words = "the same .* on all 2 ranks, got .* on rank 0 and|2 ranks to succeed, but rank 1 raised"
    if fault == "empty":
        words = "rank 1 raised ValueError: Expected at least 1 row in X, got 0.$"
    if fault == "no batches":
        words = "Expected at least 1 row on each of 2 ranks, got none on rank 1; give each some.$"
    assert re.search(words, first)
    assert ".." not in first


@pytest.mark.parametrize("place", ["ddp", "fsdp"])
def test_after_faults_ranks_go_on(found, place):
    ranks, _ = found
    np.testing.assert_array_equal(
        ranks[0][place, "faults"]["next"], ranks[1][place, "faults"]["next"]
    )
    np.testing.assert_array_equal(ranks[0][place, "faults"]["next"], ranks[0][place, "l2"]["coef_"])


@pytest.mark.parametrize("place", ["ddp", "fsdp"])
def test_what_needs_whole_tensors_or_rows_says_so(found, place):
    for own in found[0]:
        words = own[place, "errors"]
        assert "Expected cache=None" in words.pop("cache")
        assert "Expected an integer as random_state" in words.pop("covariance")
        assert "which all ranks call" in words.pop("recover")
        assert "Expected a model of one process" in words["rows"] or place == "fsdp"
        del words["rows"]
        wrong = {name: text for name, text in words.items() if text != "no error"}
        assert wrong.keys() == (words.keys() if place == "fsdp" else set())
        assert all("shard" in text for text in wrong.values())


@pytest.mark.parametrize("place", ["ddp", "fsdp"])
def test_a_model_is_left_as_it_was(found, place):
    for own in found[0]:
        fitted, kept, failed, kept_after = own[place, "states"]
        assert fitted == "no error" and kept
        assert failed.startswith("ValueError") and kept_after


def test_ranks_that_differ_or_do_not_come(found):
    first, second = (own["disagreements"] for own in found[0])
    for own in (first, second):
        assert "Expected the same weights 0.weight on all 2 ranks, got checksum" in own["weights"]
        assert "the same versions of sklearn_implicitreg on all 2 ranks, got 0.0" in own["versions"]
        np.testing.assert_array_equal(own["next"], found[0][0]["ddp", "l2"]["coef_"])
    assert "all 2 ranks within 0.5 s, got none of rank 1; call the same" in first["late"]


def test_a_plain_module_is_fitted_on_the_rows_of_its_process(found):
    first, second = (own["disagreements"]["local"] for own in found[0])
    assert first[0] != second[0]


def test_a_rank_that_waits_in_a_layer_is_freed(found):
    first, second = (own["stuck"] for own in found[0])
    assert "Timed out" in first
    assert "index out of range" in second


def test_a_group_that_was_destroyed_is_named(found):
    for own in found[0]:
        assert "process group is initialized" in own["destroyed"]


@pytest.mark.slow
def test_the_recipe_of_the_docs_runs(tmp_path):
    text = (Path(__file__).parents[2] / "doc" / "scaling.md").read_text()
    code = text.split("```python\n# fit_on_ranks.py\n")[1].split("```")[0]
    script = tmp_path / "fit_on_ranks.py"
    script.write_text(code)
    root = str(Path(sklearn_implicitreg.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    assert re.search(r"Verdict: +supported", run.stdout)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("weight_decay"))
    assert float(line.split()[1]) == pytest.approx(0.1, rel=1e-3)
