"""The benchmark: Pointsman beside what raw ZeroMQ and the disk can do, and beside its peers.

``python -m scripts.bench`` runs real processes over real sockets and writes a table, a JSON file
and a plot. What counts is not the figures themselves but their ratio to the raw limit that was
measured in the same minute.
"""
