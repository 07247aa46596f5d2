"""What the figures were measured on."""

import os
import platform
import subprocess
import time


def machine(directory, binary):
    """`directory`: where the data lies; `binary`: what is measured."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    device = subprocess.run(
        ["df", "--output=fstype,source", directory], capture_output=True, text=True
    ).stdout.splitlines()
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": platform.release(),
        "cpu": f"{len(models)} x {models[0] if models else platform.machine()}",
        "memory": f"{memory} GiB",
        "disk": device[-1].split()[0] if device else "?",
        "version": version,
    }
