"""From clone to execve: the child of an agent whose memory it shares, and who it becomes."""
