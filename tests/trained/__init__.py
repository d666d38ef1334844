"""Tests on a model that was really trained, and how it is loaded."""
