"""A Kubernetes cluster of real parts whose nodes are Orlop's; see :mod:`tests.cluster.room`."""
