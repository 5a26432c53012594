"""The whole system in one process, under virtual time, from one seed, with faults."""
