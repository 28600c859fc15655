"""Pull, content store, layers, garbage collection."""
