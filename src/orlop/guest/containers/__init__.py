"""Containers and the processes in them: what they see, what they may use, how they end."""
