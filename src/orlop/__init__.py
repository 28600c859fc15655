"""Orlop: a container runtime for Kubernetes that runs every pod in its own virtual machine."""

__version__ = "0.1.0"
