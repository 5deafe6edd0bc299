# Every target makes its own virtual environment on a fresh machine and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist worksteal
THEORY := bounds.py early_stopping.py filters.py implicit.py kernels.py noise.py spectral.py \
	strength.py units.py
PENALTIES := __init__.py anchored.py base.py checks.py decov.py dropout.py early_stopping.py \
	factored.py functions.py groups.py inputs.py learned.py matrices.py outputs.py path_norm.py \
	quadratic.py sharpness.py spectra.py spline.py structured.py weights.py
DISPLAYS := coefficient_path.py coefficients.py family_comparison.py gradient_match.py \
	identifiability.py influence.py penalty_shape.py recovery.py spectrum.py
RECORDERS := lightning.py record.py skorch.py sklearn.py transformers.py
PUBLIC := $(addprefix sklearn_implicitreg/,estimator.py model_selection.py \
	$(addprefix inspection/,$(DISPLAYS)) \
	endpoints/endpoint.py endpoints/retraining.py problem/linear_model.py \
	regression/restrictions.py $(addprefix trajectory/recording/,$(RECORDERS)) \
	$(addprefix results/,attributes.py contrast.py scoring.py \
	recovery/comparison.py) \
	$(addprefix theory/,$(THEORY)) $(addprefix penalties/,$(PENALTIES)))
EXTRAS := plot test doc dev libraries
.DEFAULT_GOAL := help
.PHONY: help demo picture paper test test-all test-libraries test-matrix fuzz lint format doc bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.plot  ## train and analyze on bundled data, print the tables, write demo.png
	MPLBACKEND=Agg $(BIN)/python examples/plot_demo.py

paper: $(VENV)/.plot  ## reproduce the figures of the paper, write doc/paper/results.md
	$(BIN)/python examples/paper/run.py $(PAPER)

test: $(VENV)/.test  ## tests, doctests and examples, without the slow ones
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test  ## all tests, the slow ones too
	$(PYTEST)

test-libraries: $(VENV)/.libraries  ## recorders with Lightning, Transformers and Accelerate installed
	$(PYTEST) sklearn_implicitreg/trajectory tests/trajectory/test_libraries.py \
		tests/trajectory/test_hugging_face.py tests/trajectory/test_wrapped.py \
		tests/contract/test_docs.py -k "not example and not picture"

test-matrix:  ## tests with the oldest versions, without optional libraries, and of the wheel; or some: CELLS='oldest wheel'
	PYTHON=$(PYTHON) .ci/matrix $(CELLS)

fuzz: $(VENV)/.test  ## ten thousand random models, families and trainings against laws that hold for all
	$(PYTEST) tests/fuzz --hypothesis-profile=fuzz

lint: $(VENV)/.dev  ## formatting, lint, types, docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/numpydoc lint $(PUBLIC)

format: $(VENV)/.dev  ## format the sources and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

picture: $(VENV)/.plot  ## draw the picture of the README and of the documentation's home page
	MPLBACKEND=Agg $(BIN)/python examples/plot_shape_of_a_penalty.py doc/_static/penalty_shape.png

doc: $(VENV)/.doc  ## build the documentation into doc/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html doc doc/_build/html

bench: $(VENV)/.test  ## measure the ratios that the documentation gives, or some: BENCH='scaling others'
	$(BIN)/python benchmarks/run.py $(BENCH)

# torch goes first and by its pin, so that no other requirement can pull another build of it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; give it as PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(addprefix $(VENV)/.,$(EXTRAS)): $(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e ".[$*]"
	touch $@

clean:  ## remove the environment and everything built
	rm -rf $(VENV) .matrix doc/_build doc/auto_examples doc/generated .pytest_cache .mypy_cache .ruff_cache
