"""The command ``orlop-oci``: it starts and ends with each call, so it imports little and late."""
