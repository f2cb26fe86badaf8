"""Kernel configuration: fragments merged, then proved to have taken effect."""
