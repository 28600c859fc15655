"""The agent: process 1 of a pod's virtual machine.

It needs nothing but Python's standard library and :mod:`orlop.wire`. One process, one thread, one
epoll loop (``loop``); nothing in it polls, so that an idle VM costs nothing. ``channel`` speaks with
the daemon over a virtio-serial port, ``dispatch`` finds the handler of a request, ``agent`` holds
what exists. A container's process is neither forked from the interpreter nor started by a program of
its own: it is a clone that walks a chain of prepared system calls (``script``, ``spawn``), which
``mounts``, ``credentials`` and ``program`` write and the last of which is execve.
"""
