"""Live: a camera in, a virtual camera out, with the background gone and never by accident."""
