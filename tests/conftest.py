"""Fixtures that every part shares: a tiny random GPT-2 checkpoint and the bundles made of it."""
