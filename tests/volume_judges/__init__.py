"""File systems, judged by programs of others, on each kind of volume. ``make volume-judges``."""
