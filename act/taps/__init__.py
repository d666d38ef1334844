"""How statistics are taken while a model runs: the probe, fused parts and hooks, donor and target in lockstep.

No corpora, files or command line belong here; arithmetic belongs in act_kernels.
"""

from act.taps.tapped import taps as taps
