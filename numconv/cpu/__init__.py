"""Convolution on the CPU. One file for each matrix or algorithm; a launcher allocates, a kernel only loops.

Launchers take contiguous arrays of one dtype in the channelled shape, ``x (N, C, *in)``, ``w (K, C/G, *k)``,
``y (N, K, *out)``, and a geometry as the table of axes, so that the same launcher runs the input gradient.
"""
