"""The Python API's parts; its users import `flgo_hydra`."""
