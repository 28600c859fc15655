"""Pods made and removed by the hundred while the machine under the daemon fails in every way.

``faults`` is loaded into a real daemon (through ``layer/sitecustomize.py``) and makes its child processes,
files, system calls, sockets, QEMU and guests fail or stall, as a seed says. ``churn`` are the clients,
``invariants`` what must hold, ``__main__`` the run: ``make soak MINUTES=60 SEED=7``.
"""
