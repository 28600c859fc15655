"""What a container uses, as containerd has it of control groups of version 2: those are the guest's."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage

from orlop.linux.usage import Usage
from orlop.shim.api import metrics_pb2 as pb

_THOUSAND = 1000


def metrics(usage: Usage) -> AnyMessage:
    """The figures in containerd's words."""
    limit = usage.memory_limit or (1 << 64) - 1
    found = pb.Metrics(
        pids=pb.PidsStat(current=usage.pids, limit=usage.pids_limit),
        cpu=pb.CPUStat(
            usage_usec=usage.cpu_ns // _THOUSAND,
            user_usec=usage.cpu_user_ns // _THOUSAND,
            system_usec=usage.cpu_system_ns // _THOUSAND,
            nr_periods=usage.cpu_periods,
            nr_throttled=usage.cpu_throttled_periods,
            throttled_usec=usage.cpu_throttled_ns // _THOUSAND,
        ),
        memory=pb.MemoryStat(
            anon=usage.rss,
            file=usage.cache,
            file_mapped=usage.mapped_file,
            inactive_file=max(usage.memory - usage.working_set, 0),
            pgfault=usage.page_faults,
            pgmajfault=usage.major_page_faults,
            usage=usage.memory,
            usage_limit=limit,
            swap_usage=usage.swap,
            max_usage=usage.memory_peak,
        ),
        memory_events=pb.MemoryEvents(max=usage.memory_failures, oom_kill=usage.oom_kills),
        io=pb.IOStat(
            usage=[
                pb.IOEntry(
                    major=device.major,
                    minor=device.minor,
                    rbytes=device.read_bytes,
                    wbytes=device.write_bytes,
                    rios=device.reads,
                    wios=device.writes,
                )
                for device in usage.devices
            ]
        ),
    )
    return AnyMessage(type_url=found.DESCRIPTOR.full_name, value=found.SerializeToString())
