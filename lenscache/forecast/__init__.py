"""What an extraction would cost on other devices, worked out and not run.

outline of a model --roofline--> seconds a token --forecast--> hours, bytes, devices
footprint: requests a store takes      fleet: many workers that share one store, simulated
"""
