"""The door for containerd: a shim of its own making, whose tasks are containers of the engine."""
