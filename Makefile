# `make test` is the README's second command. Everything runs from .venv, which ./setup.sh makes.

PYTHON := .venv/bin/python
# Where pip puts a Go when the machine has none.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
HANDLER ?= process
TRANSPORT ?= spdy
FOCUS ?=
TARGET ?=
SECONDS ?= 300
MINUTES ?= 60
SEED ?=
COMMAND ?=
GUEST ?=
CONTAINERDS ?= 1.6,1.7
RUN ?= vm,guest,process

.PHONY: help test lint types unit e2e hostile fuzz soak soak-short conformance conformance-all \
	node-e2e node-e2e-all node-e2e-short cluster cluster-e2e cluster-e2e-short tenants tenants-api tenants-cluster tenants-demo tenants-image debian13 deb bare wheel monitoring csi-sanity csi-life csi-e2e csi-others volume-judges oci-validation doors doors-13 nerdctl podman-system shim-conformance crio lasting upgrade kvm-lab bench sbom lock clean

help: ## This list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

test: lint types unit e2e conformance-all ## What a newcomer runs; CI runs more (root)

lint: $(PYTHON) ## ruff
	$(PYTHON) -m ruff check src tests bench scripts
	$(PYTHON) -m ruff format --check src tests bench scripts

types: $(PYTHON) ## mypy --strict
	$(PYTHON) -m mypy

unit: $(PYTHON) ## Tests that need no root, and a short round of fuzzing
	$(PYTHON) -m pytest tests/unit tests/fuzz -q --junitxml build/tests/unit.xml

e2e: $(PYTHON) ## Tests against real QEMU, CNI, registry and crictl (root)
	$(PYTHON) -m pytest tests/e2e -q --junitxml build/tests/e2e.xml

hostile: $(PYTHON) ## Attacks on a node, each of which must fail (root)
	$(PYTHON) -m pytest tests/hostile -q --junitxml build/tests/hostile.xml

fuzz: $(PYTHON) ## Look for inputs that break a parser: TARGET=name SECONDS=for all together
	$(PYTHON) -m tests.fuzz $(if $(TARGET),--target $(TARGET)) --seconds $(SECONDS)

soak: $(PYTHON) ## Pods by the hundred while everything under the daemon fails: MINUTES= SEED= (root)
	$(PYTHON) -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

soak-short: $(PYTHON) ## The same for a minute, with the same faults every time (root)
	$(PYTHON) -m tests.soak --minutes 0.6 --pods 40 --round 40 --every 3 --seed 20

conformance: $(PYTHON) ## critest: HANDLER=vm|process|auto TRANSPORT=spdy|websocket FOCUS=regex (root)
	$(PYTHON) -m tests.conformance --handler $(HANDLER) --transport $(TRANSPORT) $(if $(FOCUS),--focus '$(FOCUS)')

conformance-all: $(PYTHON) ## The runs of critest that CI makes (root)
	$(PYTHON) -m tests.conformance --all

node-e2e: $(PYTHON) ## Kubernetes' node suite: HANDLER=vm,process,containerd FOCUS=regex (root)
	$(PYTHON) -m tests.node_e2e --handler $(HANDLER) $(if $(FOCUS),--focus '$(FOCUS)')

node-e2e-all: $(PYTHON) ## Its serial, slow and feature specs too, both handlers beside containerd: FOCUS=regex (hours, root)
	$(PYTHON) -m tests.node_e2e --handler vm,process,containerd --all $(if $(FOCUS),--focus '$(FOCUS)')

node-e2e-short: $(PYTHON) ## The part of it that CI runs, under both handlers (root)
	$(PYTHON) -m tests.node_e2e --handler vm,process --short --again

cluster: $(PYTHON) ## Two nodes of a Kubernetes cluster: pods, Services, killed kubelets and daemons (root)
	$(PYTHON) -m pytest tests/cluster -q --junitxml build/tests/cluster.xml

cluster-e2e: $(PYTHON) ## Kubernetes' conformance specs on that cluster: HANDLER=vm,process FOCUS=regex (root)
	$(PYTHON) -m tests.cluster --handler $(HANDLER) $(if $(FOCUS),--focus '$(FOCUS)')

cluster-e2e-short: $(PYTHON) ## A part of them, under both handlers at once (root)
	$(PYTHON) -m tests.cluster --handler vm,process --short

tenants: $(PYTHON) ## Networks of tenants on two nodes made of network namespaces, and attacks on them (root)
	$(PYTHON) -m pytest tests/tenants -q --junitxml build/tests/tenants.xml

tenants-cluster: $(PYTHON) ## Tenants on a cluster of two nodes with pods in VMs (root)
	$(PYTHON) -m pytest tests/tenants_cluster -q --junitxml build/tests/tenants-cluster.xml

tenants-demo: $(PYTHON) ## Two tenants with equal addresses on such a cluster, shown step by step (root)
	$(PYTHON) -m tests.tenants_cluster

tenants-image: $(PYTHON) ## The image of operator and agents, built and run on such a cluster (root)
	$(PYTHON) -m pytest tests/tenants_image -q --junitxml build/tests/tenants-image.xml

debian13: $(PYTHON) ## Set-up and the fast end-to-end tests in a root of Debian 13 (root)
	$(PYTHON) -m tests.lab debian13 $(COMMAND)

deb: $(PYTHON) ## The Debian package, in build/deb, looked at by lintian, built in a root of Debian 13 (root)
	$(PYTHON) -m tests.lab deb

bare: $(PYTHON) ## The Debian package installed in bare roots of Debian 12 and 13, where it runs a pod (root)
	$(PYTHON) -m tests.lab bare

wheel: $(PYTHON) ## The wheel, in build/wheel
	rm -rf build/wheel build/lib
	$(PYTHON) -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .

monitoring: $(PYTHON) ## The dashboard and alert rules, read by Prometheus' own parsers, beside a real daemon (root)
	$(PYTHON) -m pytest tests/monitoring -q --junitxml build/tests/monitoring.xml

tenants-api: $(PYTHON) ## Tenants and their operator on a real API server without nodes
	$(PYTHON) -m pytest tests/tenants_api -q --junitxml build/tests/tenants-api.xml

csi-sanity: $(PYTHON) ## The CSI driver, judged by the sanity suite of kubernetes-csi (root)
	$(PYTHON) -m pytest tests/csi -q --junitxml build/tests/csi.xml

csi-life: $(PYTHON) ## The CSI driver on two nodes, under the sidecars of kubernetes-csi (root)
	$(PYTHON) -m pytest tests/csi_life -q --junitxml build/tests/csi-life.xml

csi-e2e: $(PYTHON) ## Kubernetes' own storage suite on the CSI driver: RUN=vm,guest,process (root)
	$(PYTHON) -m tests.csi_life --run $(RUN)

csi-others: $(PYTHON) ## Volumes of drivers that others wrote, under both handlers (root)
	$(PYTHON) -m pytest tests/csi_others -q -rP --junitxml build/tests/csi-others.xml

volume-judges: $(PYTHON) ## fio, fsx and pjdfstest on each kind of volume, both handlers; tables in build/volume-judges.md (root)
	$(PYTHON) -m tests.volume_judges

oci-validation: $(PYTHON) ## The OCI runtime specification, judged by runtime-tools; table in build/oci-validation.md (root)
	$(PYTHON) -m pytest tests/oci_validation -q --junitxml build/tests/oci-validation.xml

doors: $(PYTHON) ## podman and Docker with orlop-oci, the shim under containerd: CONTAINERDS=1.6,1.7,2.3 (root)
	ORLOP_CONTAINERDS=$(CONTAINERDS) $(PYTHON) -m pytest tests/doors -q --junitxml build/tests/doors.xml

nerdctl: $(PYTHON) ## nerdctl, built once, over containerd with the shim (root)
	$(PYTHON) -m pytest tests/nerdctl -q --junitxml build/tests/nerdctl.xml

podman-system: $(PYTHON) ## podman's own system tests with orlop-oci, beside crun: FILES=030,200 FOCUS=regex; table in build/podman-system (root)
	$(PYTHON) -m tests.podman_system $(if $(FILES),--files '$(FILES)') $(if $(FOCUS),--filter '$(FOCUS)')

shim-conformance: $(PYTHON) ## critest through containerd with the shim, beside runc: CONTAINERDS=2.3 FOCUS=regex (root)
	$(PYTHON) -m tests.doors.conformance $(if $(filter command line,$(origin CONTAINERDS)),--containerd $(CONTAINERDS)) $(if $(FOCUS),--focus '$(FOCUS)')

crio: $(PYTHON) ## CRI-O with orlop-oci and the shim: a pod's life, then critest: RUNS=runc,orlop-vm FOCUS=regex (root)
	$(PYTHON) -m pytest tests/crio -q --junitxml build/tests/crio.xml
	$(PYTHON) -m tests.crio $(if $(RUNS),--run '$(RUNS)') $(if $(FOCUS),--focus '$(FOCUS)')

doors-13: $(PYTHON) ## The podman of Debian 13, with netavark, with orlop-oci in a root of Debian 13 (root)
	$(PYTHON) -m tests.lab doors13

lasting: $(PYTHON) ## 110 pods, VMs as far as memory goes, images, logs, a full disk; figures in build/lasting.md (root)
	$(PYTHON) -m pytest tests/lasting -q -s

upgrade: $(PYTHON) ## Pods of the last release under this version, forwards and back (root)
	$(PYTHON) -m pytest tests/upgrade -q

kvm-lab: $(PYTHON) ## The handler vm in an emulated computer whose KVM works (root)
	$(PYTHON) -m tests.lab kvm $(COMMAND)

bench: $(PYTHON) ## Times and memory (root); see docs/performance.md
	$(PYTHON) -m bench

sbom: $(PYTHON) ## What an installation consists of, as CycloneDX, into build/sbom.cdx.json
	$(PYTHON) scripts/sbom.py build/sbom.cdx.json $(GUEST)

lock: $(PYTHON) ## The newest Python packages, with hashes, into packaging/requirements
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	UV=build/lock/bin/uv sh packaging/requirements/lock.sh

clean: ## What the build left in this directory
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(PYTHON):
	@echo "There is no .venv here: run ./setup.sh first." >&2; exit 1
