"""nerdctl over containerd with our shim."""
