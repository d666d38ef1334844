"""What every other package needs and nothing about models: errors, whole files, optional packages, versions.

It may import nothing from act, and no torch but in tensor_files.
"""
