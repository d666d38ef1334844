"""The whole run from one YAML file.

It calls the packages below and adds no method of its own.
"""
