"""Tests of act_kernels on every backend, and what they share."""
