"""A pod in its own virtual machine."""
