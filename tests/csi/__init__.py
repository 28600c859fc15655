"""The CSI driver, judged by the suite of those who define CSI. ``make csi-sanity``."""
