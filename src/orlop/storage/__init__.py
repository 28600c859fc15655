"""Disks for containers and shares for volumes."""
