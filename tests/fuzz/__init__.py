"""Damaged and hostile files, ten kinds of them, as every reader may meet them."""
