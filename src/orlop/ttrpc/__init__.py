"""ttrpc: gRPC's services over a plain stream, as containerd and its kin speak it on one machine.

Client and server of protocol 1.2 (unary calls and streams); see PROTOCOL.md of github.com/containerd/ttrpc.
"""
