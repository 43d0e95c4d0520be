"""Launchers for callers that are compiled themselves: the same kernels, and the same plans for them.

Arrays come in flat and contiguous, of one dtype, what is spatial as a table; results go back flat, with their shape.
What a caller's own function compiles is only the way in and out; these are compiled once for each dtype and cached,
and call each other and the kernels by their address.
"""
