"""OCI bundles in the engine's words: what fronts share whose callers bring a ``config.json``."""
