"""The CSI driver in a cluster, under the sidecars that real clusters have. ``make csi-life``."""
