"""What goes on on a node: ``top``, ``events``, ``debug``, ``report``."""
