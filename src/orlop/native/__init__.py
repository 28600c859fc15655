"""The front for what CRI has no words for: calls of our own clients, on the socket of CRI."""
