"""Ours beside its peers: each a process of its own, under the same load, with every answer accounted for."""
