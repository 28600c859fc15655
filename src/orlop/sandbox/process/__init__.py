"""A pod as namespaces on the host."""
