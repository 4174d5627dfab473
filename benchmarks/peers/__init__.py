"""Runs the same federated job in FedClock, in a loop by hand, and in other frameworks.

Each module of a participant has one function, ``train(job_folder, rounds)``, that returns the
adapter.
"""
