"""The virtual machine as a whole: whose it is, its network, its memory, its cgroups, what it uses."""
