"""Customers of one cluster who do not trust one another: Tenants, their Networks, the operator behind them.

``model`` is what a Tenant asks for, ``desired`` and ``quota`` what that means in Kubernetes' own objects:
these are pure. ``settle`` and ``ending`` make it so, ``operating`` says when, ``api`` is the one door to the
API server.
"""
