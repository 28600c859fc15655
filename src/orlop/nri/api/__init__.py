"""The messages of NRI: the .proto and what ``scripts/generate_proto.py`` makes of it."""
