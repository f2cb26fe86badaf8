"""Guests: machines as data, the init, the console, and what its log proves."""
