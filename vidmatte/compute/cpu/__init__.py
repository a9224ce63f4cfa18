"""The per-frame work on the CPU: PyAV, OpenCV, OpenVINO; never torch."""
