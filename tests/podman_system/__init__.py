"""podman's own system tests, with ``orlop-oci`` as the runtime and with crun."""
