"""asv benchmarks of znni: primitives, a small plan, import time."""
