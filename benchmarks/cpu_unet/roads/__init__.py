"""The roads: each file knows how one library prepares a U-Net (``prepare``) and how it runs it (``load``).

A road's file is the only one that imports its library, so that a process holds what its own road needs and nothing else.
"""
