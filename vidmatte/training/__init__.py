"""Training of the networks: pictures packed once, augmented in batches, every step repeatable."""
