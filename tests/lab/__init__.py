"""Other machines than this one: a root of Debian 13, and an emulated computer whose KVM works.

``python -m tests.lab debian13`` and ``python -m tests.lab kvm``; ``make debian13`` and ``make kvm-lab``.
"""
