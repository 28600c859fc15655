"""CNI, network namespaces, taps."""
