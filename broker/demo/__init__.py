"""The demo: a folder's Merkle tree as one graph of jobs, run by real processes and checked."""
