"""The agent: process 1 of a pod's virtual machine.

It needs nothing but Python's standard library and :mod:`orlop.wire`. One process, one thread, one
epoll loop (``loop``); nothing in it polls, so that an idle VM costs nothing. ``channel`` speaks with
the daemon over a virtio-serial port, ``dispatch`` finds the handler of a request, ``agent`` holds
what exists. Containers are forked from this very interpreter, which is warm and therefore faster
than any program that would have to be started: ``spawn`` forks, ``inside`` is what the child does
until it becomes the container's program.
"""
