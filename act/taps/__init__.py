"""The statistics' way into a forward pass: probe, fused parts and hooks, donor and target in lockstep.

No corpora, files or command line belong here; arithmetic belongs in act_kernels.
"""
