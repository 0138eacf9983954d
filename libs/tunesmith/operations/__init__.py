"""What the client can do, written once: each operation is a generator of steps.

The sync and the async client both drive these generators. Names may be short: `habit` stands for
`projects/{project}/datasets/habit`, `habit@2` for its version 2.
"""
