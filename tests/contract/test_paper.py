"""What the figures of the paper share, and the driver that runs them."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture(scope="module")
def shared():
    return _module("shared")


def _module(name):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def test_adam_on_sums_is_adam_on_all_weights(shared):
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    gradients = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    log = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log], lr=0.05)
    for _ in range(30):
        for g in gradients:
            optimizer.zero_grad()
            (columns @ log.exp() + g).square().mean().backward()
            optimizer.step()
    sums = (columns.T @ columns, gradients @ columns, gradients.square().sum(dim=1))
    found, epochs = shared.published_fit(
        *(s.numpy() for s in sums), 50, lr=0.05, n_epochs=30, patience=30
    )
    assert epochs == 30
    np.testing.assert_allclose(found, log.exp().detach().numpy(), rtol=1e-10)


def test_adam_finds_a_large_coefficient_and_stops_above_a_small_one(shared):
    def fit(product, plateau):
        sums = np.array([[4.0]]), np.array([[product]]), np.ones(1)
        how = {"lr": 0.05, "n_epochs": 5000, "patience": 100, "plateau": plateau}
        found, epochs = shared.published_fit(*sums, 1, **how)
        assert epochs < 5000
        return found[0]

    assert abs(fit(-2.0, None) - 0.5) < 1e-3
    assert fit(-0.004, 10) > 10 * 0.001


def test_a_cell_is_made_once(shared, tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": 1.5, "verdict": "supported", "weights": np.arange(3.0)}

    for _ in range(2):
        found = shared.kept(tmp_path / "new", "cell", "a", make)
        assert float(found["value"]) == 1.5
        assert str(found["verdict"]) == "supported"
        np.testing.assert_array_equal(found["weights"], np.arange(3.0))
    assert len(made) == 1
    shared.kept(tmp_path / "new", "cell", "other settings", make)
    assert len(made) == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cell.npz"]


@pytest.mark.parametrize("size", [0, 10, 300, 600])
def test_a_damaged_cell_is_made_again(shared, tmp_path, size):
    shared.kept(tmp_path, "cell", "a", lambda: {"value": np.arange(100)})
    file = tmp_path / "cell.npz"
    file.write_bytes(file.read_bytes()[:size])
    found = shared.kept(tmp_path, "cell", "a", lambda: {"value": 2})
    assert found["value"] == 2
    assert shared.kept(tmp_path, "cell", "a", lambda: 1 / 0)["value"] == 2


def test_a_cell_that_fails_leaves_nothing(shared, tmp_path):
    with pytest.raises(ZeroDivisionError):
        shared.kept(tmp_path, "cell", "a", lambda: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_cells_are_chosen_by_name(shared, monkeypatch, capsys):
    def known(full):
        return ("a", "b", "c") if full else ("a", "b")

    monkeypatch.setattr(sys, "argv", ["plot", "--full", "--cells", "c", "a"])
    assert shared.arguments("figure", known).cells == ["a", "c"]
    monkeypatch.setattr(sys, "argv", ["plot"])
    assert shared.arguments("figure", known).cells == ["a", "b"]
    monkeypatch.setattr(sys, "argv", ["plot", "--cells", "c"])
    with pytest.raises(SystemExit):
        shared.arguments("figure", known)
    assert "Expected cells among a, b; got c." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        shared.arguments("figure")
    assert "the figure has no cells; got c." in capsys.readouterr().err


def test_figures_are_chosen_by_name(capsys):
    run = _module("run")
    assert run.arguments(["fig5", "fig1"]).figures == ["fig5", "fig1"]
    with pytest.raises(SystemExit):
        run.arguments(["fig9"])
    assert "got fig9." in capsys.readouterr().err


def test_results_of_scripts_make_a_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    run = _module("run")
    good, bad = tmp_path / "plot_fig1_good.py", tmp_path / "plot_fig2_bad.py"
    good.write_text(
        f"import sys; sys.path.append({str(FOLDER)!r})\n"
        "import matplotlib.pyplot as plt\nfrom shared import report\n"
        "report('fig1', [{'what': '|x|', 'here': .5}, {'what': 'z'}], plt.figure())\n"
    )
    bad.write_text("raise SystemExit('no')\n")
    monkeypatch.setattr(run, "FIGURES", {"fig1": good, "fig2": bad})
    assert run.main(["--out", str(tmp_path / "out"), "fig1"]) == 0
    assert run.main(["--out", str(tmp_path / "out")]) == 1
    page = (tmp_path / "out" / "results.md").read_text()
    assert r"| 1 | \|x\| |  |  | 0.5 |  | " in page
    assert "| 2 | the script |  |  |  | **failed** | 0 |" in page


def test_report_writes_rows_and_picture_where_asked(shared, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv(shared.RESULTS, str(tmp_path))
    figure = pyplot.figure()
    shared.report("fig0", [{"what": "a", "here": 1}], figure)
    pyplot.close(figure)
    (row,) = json.loads((tmp_path / "fig0.json").read_text())
    assert row == dict.fromkeys(shared.COLUMNS, "") | {"what": "a", "here": "1"}
    assert (tmp_path / "fig0.png").is_file()
