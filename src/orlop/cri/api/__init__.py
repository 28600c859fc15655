"""The messages of CRI v1: the .proto and what ``scripts/generate_proto.py`` makes of it."""
