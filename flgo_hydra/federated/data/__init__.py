"""A task's samples: read and checked, split over clients, kept in a cache, brought to the device.

What configs name stands one floor up: `sources.py`, `synthetic.py`, `flgo_task.py`, `partition.py`.
"""
