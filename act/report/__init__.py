"""Profiles and channel sets in tables and pictures.

Its numbers come from act.ranking.analysis; no arithmetic on profiles belongs here.
"""
