"""Limits of control groups, read from made-up hierarchies."""

from znni.cgroup import cpu_quota, memory_limits


def _tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_version_2_limits_of_all_parents_count_and_page_cache_does_not(tmp_path):
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/inner/memory.current": "1000\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/memory.max": "5000\n",
            "sys/fs/cgroup/outer/memory.current": "3000\n",
            "sys/fs/cgroup/outer/memory.stat": "anon 2500\ninactive_file 400\n",
            "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",
        },
    )
    assert memory_limits(root) == [(5000, 2600)]
    assert cpu_quota(root) == 1.5


def test_version_1_limits(tmp_path):
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "7000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "2000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "9000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limits(root) == [(7000, 2000)]
    assert cpu_quota(root) == 3.0


def test_a_container_that_sees_only_its_own_root(tmp_path):
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/host/path/of/the/container\n",
            "sys/fs/cgroup/memory.max": "5000\n",
            "sys/fs/cgroup/memory.current": "1000\n",
        },
    )
    assert memory_limits(root) == [(5000, 1000)]


def test_a_kernel_without_cgroups_bounds_nothing(tmp_path):
    assert memory_limits(tmp_path) == [] and cpu_quota(tmp_path) is None


def test_this_process_can_be_asked():
    assert all(limit > 0 and used >= 0 for limit, used in memory_limits())
    assert cpu_quota() is None or cpu_quota() > 0
