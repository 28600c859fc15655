"""The door for callers of an OCI runtime: a command compatible with runc, and the daemon's side of it."""
