"""Shared memory between the ranks of one host: segments, flags, waiting, and the execution of tables over them."""
