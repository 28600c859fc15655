"""The messages of CSI and of the registration with a kubelet, generated from the .proto files here."""
