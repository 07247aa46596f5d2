"""The same data through `rclone mount --vfs-cache-mode full`, which keeps files on the local disk as well.

Its source is the folder on this disk that the stand-in Hub serves, without a server between: more than it would have from
a bucket. Where it is not installed (`scripts/setup.sh rclone`), its figures are left out.
"""

import os
import shutil
import subprocess

from process import Failed, Process, mounted


def installed():
    return shutil.which("rclone") is not None


class Rclone:
    """A mount of a folder, read-only, with a cache of its own that goes with it. `rate`: bytes a second that it may take."""

    def __init__(self, parent, source, rate=None):
        self.dir = os.path.join(parent, "rclone")
        self.mountpoint = os.path.join(self.dir, "mnt")
        # A run that was killed left its own.
        if mounted(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.mountpoint)
        command = ["rclone", "mount", source, self.mountpoint, "--vfs-cache-mode", "full", "--read-only"]
        # What is there does not change, and room is not what is measured.
        command += ["--cache-dir", os.path.join(self.dir, "cache"), "--dir-cache-time", "24h", "--vfs-cache-max-age", "24h"]
        command += ["--attr-timeout", "1h", "--config", os.path.join(self.dir, "none.conf")]
        if rate:
            command += ["--bwlimit", f"{rate}B"]
        self.process = Process("rclone", command, os.path.join(parent, "rclone.log"))
        try:
            self.process.until(lambda: mounted(self.mountpoint), 30, "mounts")
        except BaseException:
            self.close()
            raise

    def path(self, name):
        return os.path.join(self.mountpoint, name)

    def close(self):
        self.process.stop(30)
        left = mounted(self.mountpoint)
        if left:
            subprocess.run(["umount", "-l", self.mountpoint], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)
        if left:
            raise Failed(f"{self.mountpoint}: still mounted after rclone ended")
