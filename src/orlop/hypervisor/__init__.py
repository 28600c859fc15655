"""Start, save, restore, plug and stop a virtual machine."""
