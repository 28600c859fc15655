"""The host-guest protocol: framing and messages. Standard library only; host and guest share it."""
