"""The messages of our own calls, generated from the .proto file here."""
