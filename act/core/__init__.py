"""What every other package needs, and nothing about models: errors, files, optional packages and versions.

This package imports nothing else from act; only ``tensor_files`` imports torch.
"""
