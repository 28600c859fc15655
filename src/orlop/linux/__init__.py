"""What Linux itself is, said once for the host and for the guest.

System calls that Python's standard library does not offer, rtnetlink, the user database's files, the names
of capabilities, and what differs from one processor architecture to another. It imports the standard library
alone, and of that little: the guest's agent loads it too.
"""
