"""What uses Orlop by other doors than CRI, and nobody here wrote. ``make doors``."""
