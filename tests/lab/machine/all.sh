#!/bin/sh
# The lab's tests: what only this machine has, then the end-to-end tests of the handler vm under KVM, and
# those of the handler process under control groups version 2 and AppArmor.
set -u
export ORLOP_TEST_ACCELERATOR=kvm
status=0
.venv/bin/python -m pytest -v --timeout 3600 --junitxml build/tests/kvm.xml tests/lab/machine \
    tests/e2e/test_vm_claim.py tests/e2e/test_vm_sandbox.py tests/e2e/test_vm_restart.py \
    tests/e2e/test_hypervisor_machines.py tests/e2e/test_host_cgroups.py tests/e2e/test_process_pods.py \
    || status=1
.venv/bin/python -m tests.conformance --handler process --focus AppArmor || status=1
exit $status
