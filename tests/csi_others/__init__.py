"""Volumes of CSI drivers that others wrote, in a real cluster under both handlers. ``make csi-others``."""
