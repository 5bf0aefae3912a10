"""Faults on purpose: kills, full disks, bad inputs; `python -m tests.torture` tries them all and prints a table."""
