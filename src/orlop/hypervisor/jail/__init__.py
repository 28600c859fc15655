"""What a virtual machine's process may see and do, whichever hypervisor it is: as good as nothing."""
