"""The devices of this VM, by the addresses that its hypervisor gave them: one module for each kind.

Here alone the guest knows what kind of hardware its hypervisor shows it.
"""
