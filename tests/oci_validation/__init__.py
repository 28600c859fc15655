"""The OCI runtime specification, judged by opencontainers/runtime-tools. ``make oci-validation``."""
