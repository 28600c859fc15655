"""Figures of Orlop beside its peers', taken in one run with the same client and image.

``python -m bench`` runs the life of a pod on every system present; ``bench.rpc`` the cost of the
list calls, ``bench.events`` how soon events come, ``bench.pull`` pulls, ``bench.disk`` the root file
system. Nothing here is a test.
"""
