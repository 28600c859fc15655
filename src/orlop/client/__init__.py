"""A client of the daemon for Python programs; the command ``orlop`` is made of it.

    async with session.connect() as client:
        run = Run(client, Launch(image="docker.io/library/busybox", command=("true",)))
        await run.start()
        code = await run.exit_code()
        await run.discard()

What fails raises :mod:`orlop.errors`.
"""
