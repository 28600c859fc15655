"""The agent: process 1 of a pod's virtual machine.

It needs nothing but Python's standard library, :mod:`orlop.wire` and :mod:`orlop.linux`. One process, one
thread, one epoll loop (``loop``); nothing in it polls, so that an idle VM costs nothing. ``channel`` speaks
with the daemon over a device, ``dispatch`` finds the handler of a request, ``agent`` holds what
exists: ``containers`` with their processes, the ``machine`` around them, ``streams`` to and from the host. A
container's process is neither forked from the interpreter nor started by a program of its own: ``launch``
clones a child that walks a chain of prepared system calls, the last of which is execve.
"""
