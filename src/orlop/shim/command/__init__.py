"""What containerd starts, and the keeper of its connections: of the standard library alone."""
