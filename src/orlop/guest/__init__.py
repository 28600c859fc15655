"""The agent: PID 1 of the guest. Standard library and ``wire`` only."""
