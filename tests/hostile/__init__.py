"""Peers that want the worst: floods, hoards, garbage. The broker's memory stays bounded, and others
are served.
"""
