"""Kubernetes' own node suite against Orlop and against containerd: ``python -m tests.node_e2e --help``."""
