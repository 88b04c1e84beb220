"""Zonerd turns a stream of user-activity events into a durable history and an always-fresh summary."""

__version__ = "0.1.0"
