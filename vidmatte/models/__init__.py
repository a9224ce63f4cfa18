"""The U²-Net family: tables, weights, registry."""
