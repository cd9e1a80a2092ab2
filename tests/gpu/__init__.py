"""Tests of the GPU half: on a simulated device, and where there is one (marker gpu) on a real one."""
