"""The Container Runtime Interface at the edge: gRPC and streaming. Translates and validates."""
