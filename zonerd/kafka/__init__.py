"""Kafka: which topic this is, its records, and sending to it."""
