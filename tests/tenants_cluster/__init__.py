"""Tenants on a cluster of two nodes with pods in VMs; see :mod:`tests.tenants_cluster.room`."""
