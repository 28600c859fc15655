"""``orlop demo``: a daemon, a registry and an image of one's own. Tests and benchmarks use them too."""
