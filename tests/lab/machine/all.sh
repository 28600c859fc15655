#!/bin/sh
# The lab's tests: those of this directory, and the end-to-end tests of the handler vm, under KVM.
set -u
export ORLOP_TEST_ACCELERATOR=kvm
status=0
.venv/bin/python -m pytest -v --timeout 3600 tests/e2e/test_vm_claim.py tests/e2e/test_vm_sandbox.py \
    tests/e2e/test_vm_restart.py tests/e2e/test_hypervisor_machines.py || status=1
exit $status
