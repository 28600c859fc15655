"""Commands that have a word in common: ``orlop pod ls``."""
