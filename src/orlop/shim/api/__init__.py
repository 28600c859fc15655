"""The messages of a shim, generated from the .proto files beside this one."""
