"""Fuzzing: every place where bytes from outside are understood, fed with bytes that nobody would send.

``make fuzz`` looks for new inputs as long as it is told to (:mod:`tests.fuzz.__main__`); ``make unit`` takes
the same few hundred inputs for each target every time (``test_round.py``). A target is a function of bytes
with the errors that it may raise; it is added with one decorator in a module of :mod:`tests.fuzz.targets`.
"""
