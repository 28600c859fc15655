"""CRI-O, which nobody here wrote, with ``orlop-oci`` as the runtime of a handler."""
