# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`.
# Another interpreter: `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# -c does not reach the environment in which this package itself is built; the variables do (pip before and from 25.3).
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/pip install -c constraints.txt

.PHONY: quickstart test test-long lint types unit docs architectures benchmarks constraints

quickstart: $(VENV)/installed
	$(BIN)/posttrain round --n 6

test: lint types unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Without the variable pyright asks npm whether there is a newer one.
types: $(VENV)/installed-dev
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

unit: $(VENV)/installed-dev
	$(BIN)/pytest -n auto --dist loadfile

# The longer proofs, which `make test` leaves out.
test-long: $(VENV)/installed-dev
	$(BIN)/pytest -n auto --dist loadfile -m long

# The page of the recipe's keys and the schema, after a change of a key or its description; the table of constraints.
docs: $(VENV)/installed
	$(BIN)/python docs/recipe_page.py
	$(BIN)/python docs/instructions_page.py

# The table of docs/models.md: a tiny round of each model type, some five minutes.
architectures: $(VENV)/installed-dev
	$(BIN)/python benchmarks/architectures.py

# A stamp is newer than what it was installed from: then nothing is installed again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev,eval,language,math,pii,quality,ray,serve]'
	touch $(VENV)/installed $@

# Hours, on a machine that does nothing else. One script at a time: see its first lines.
benchmarks: $(VENV)/installed-dev
	for name in sampling scoring training growth mfu filters; do \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; \
	done
	rm -rf runs/glued-trl runs/loop runs/safety runs/plan
	$(BIN)/python benchmarks/loop.py --json benchmarks/results/loop.json
	$(BIN)/python benchmarks/safety.py --json benchmarks/results/safety.json
	$(BIN)/python benchmarks/plan.py --json benchmarks/results/plan.json
	$(BIN)/python benchmarks/glued_trl.py --n 6 --at-once 6 --json benchmarks/results/glued_trl.json
	$(BIN)/python benchmarks/tables.py

# After a change of the dependencies: write down what is installed now, without local versions such as +cpu.
constraints: $(VENV)/installed-dev
	$(BIN)/pip freeze --all --exclude-editable --exclude pip --exclude wheel | sed 's/+[a-z0-9.]*$$//' > constraints.new
	mv constraints.new constraints.txt
	touch $(VENV)/installed $(VENV)/installed-dev
