"""The one door to the machine: child processes, mounts, namespaces, cgroups."""
