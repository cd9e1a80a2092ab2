"""Each primitive that may be best, at its best-guess config, on the layers of the published networks."""

from .common import WATCHED, prepared


class Primitive:
    """Seconds and peak bytes of one operator call."""

    params = tuple(WATCHED)
    param_names = ("layer_primitive",)
    timeout = 120

    def setup(self, name):
        self.operator, self.x, self.out, self.workspace, _ = prepared(name)

    def time_call(self, name):
        self.operator(self.x, self.out, self.workspace)

    def peakmem_call(self, name):
        self.operator(self.x, self.out, self.workspace)
