#!/bin/sh
# The lab's tests: what only this machine has, then the end-to-end tests of the handler vm under KVM, and
# those of the handler process under control groups version 2 and AppArmor. Each file by itself, so
# that its failures are told when they happen.
set -u
export ORLOP_TEST_ACCELERATOR=kvm
status=0
for tests in lab/machine e2e/test_vm_claim.py e2e/test_vm_sandbox.py e2e/test_vm_restart.py \
    e2e/test_hypervisor_machines.py e2e/test_host_cgroups.py e2e/test_process_pods.py; do
    .venv/bin/python -m pytest -v --timeout 3600 "tests/$tests" || status=1
done
.venv/bin/python -m tests.conformance --handler process --focus AppArmor || status=1
exit $status
