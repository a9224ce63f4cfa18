"""A page about an output without a truth to compare it with: what is lost, moves or is unsure."""
