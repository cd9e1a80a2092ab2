"""What a contender's process runs in tests: `tuner.contender`, on a simulated device that can be told to fail."""

from simulated_tasks import fail_next

from tuner.contender import TASKS as OWN

TASKS = OWN | {"fail_next": fail_next}
