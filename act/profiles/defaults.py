"""Defaults that the command line shows; this module loads without PyTorch."""

MIN_EXPERT_TOKENS = 32  # of fewer tokens, no statistic of an expert is sure
