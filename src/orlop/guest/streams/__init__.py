"""Bytes between the host and a file descriptor of the guest, with windows and offsets."""
