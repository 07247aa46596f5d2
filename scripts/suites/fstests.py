"""Suites for file systems: pjdfstest, fsx, stress-ng, fio."""

import os
import re
import subprocess
import tempfile

from tools import Result, cargo_tool, find, last_lines, run

PJDFSTEST = """\
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
# Larger than what the clock of the kernel's time stamps may be behind.
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""

# All operations that there are. Sizes reach over several chunks with the larger of the two files.
FSX = """\
flen = {flen}
[opsize]
max = {opmax}
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 10
fsync = 1
fdatasync = 1
posix_fallocate = 5
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
"""

# Of stress-ng: what works in a directory that it is given. The rest of its class `filesystem` looks at /dev, /proc or at
# a file system of its own making.
STRESSORS = """access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl fiemap filename flock fpunch
fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka lockf lockofd mknod open rename symlink sync-file
touch utime xattr readahead seek sendfile mmap-file""".split()
STRESS_OPTIONS = {
    "mmap-file": ["--mmap", "1", "--mmap-file", "--mmap-bytes", "8m"],
    "hdd": ["--hdd", "1", "--hdd-bytes", "16m"],
    "iomix": ["--iomix", "1", "--iomix-bytes", "16m"],
    "copy-file": ["--copy-file", "1", "--copy-file-bytes", "128m"],
    "fallocate": ["--fallocate", "1", "--fallocate-bytes", "16m"],
    "readahead": ["--readahead", "1", "--readahead-bytes", "16m"],
    "dirmany": ["--dirmany", "1"],
    "io": ["--io", "1"],
}


def pjdfstest(directory, options, log):
    """Every test by its name: ok, skipped or FAILED."""
    # It only makes system calls: an unoptimised build is as good, and made in half the time.
    program = cargo_tool("pjdfstest", "0.2.2", "--debug")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as second, tempfile.NamedTemporaryFile("w") as config:
        os.chmod(second, 0o755)
        config.write(PJDFSTEST)
        config.flush()
        _, output = run([program, "-c", config.name, "-p", directory, "-s", second, *options.patterns], log)
    found = dict(re.findall(r"^(\S+::\S+)\s+(ok|skipped|FAILED)\b", output, re.M))
    summary = re.search(r"Summary: (\d+) failed, (\d+) skipped, (\d+) passed", output)
    if summary is None:
        return Result(0, 1, 0, [f"pjdfstest did not end: {last_lines(output)}"]), {}
    failed, skipped, passed = map(int, summary.groups())
    names = sorted(name for name, state in found.items() if state == "FAILED")
    return Result(passed, failed, skipped, [f"pjdfstest {name}" for name in names]), found


def fsx_configs(folder, options):
    """(name, file): within one chunk, and over several."""
    left_out = options.fsx_without.split(",")
    lines = [line for line in FSX.splitlines() if line.split(" =")[0] not in left_out]
    lines += [f"{op} = 0" for op in left_out if op]
    for name, flen, opmax in (("small", 256 << 10, 64 << 10), ("large", 5 << 20, 1 << 20)):
        path = os.path.join(folder, f"fsx-{name}.toml")
        with open(path, "w", encoding="ascii") as file:
            file.write("\n".join(lines).format(flen=flen, opmax=opmax))
        yield name, path


def without(options):
    return f", without {options.fsx_without}" if options.fsx_without else ""


def fsx_command(config, ops, seed, path, artifacts):
    return [cargo_tool("fsx", "0.3.2"), "-f", config, "-N", str(ops), "-S", str(seed), "-P", artifacts, path]


def fsx(directory, options, log):
    """One file, all operations, for each seed; seeds take turns with the two sizes."""
    result = Result(note=f"{options.fsx_ops} operations x {options.fsx_seeds} seeds{without(options)}")
    with tempfile.TemporaryDirectory() as aside:
        kinds = list(fsx_configs(aside, options))
        for seed in range(options.seed, options.seed + options.fsx_seeds):
            name, config = kinds[seed % len(kinds)]
            path = os.path.join(directory, f"fsx-{seed}")
            status, output = run(fsx_command(config, options.fsx_ops, seed, path, aside), log)
            result.add(status == 0, f"fsx {name} -N {options.fsx_ops} -S {seed}: {last_lines(output)}")
    return result


def fsx_on_two(directories, options, log):
    """Two at once on two mounts of one volume, on different files of one directory."""
    result = Result(note=f"2 mounts, {options.fsx_ops} operations x {options.fsx_seeds} seeds each{without(options)}")
    with tempfile.TemporaryDirectory() as aside:
        kinds = list(fsx_configs(aside, options))
        for seed in range(options.seed, options.seed + options.fsx_seeds):
            running = []
            for number, directory in enumerate(directories):
                _, config = kinds[(seed + number) % len(kinds)]
                path = os.path.join(directory, f"fsx-{number}-{seed}")
                command = fsx_command(config, options.fsx_ops, seed * 2 + number, path, aside)
                output = tempfile.TemporaryFile("w+")
                running.append((command, output, subprocess.Popen(command, stdout=output, stderr=output)))
            for command, output, child in running:
                status = child.wait()
                output.seek(0)
                text = output.read()
                with open(log, "a", encoding="utf-8") as file:
                    file.write(f"$ {' '.join(command)}\n{text}\n[exit {status}]\n")
                result.add(status == 0, f"{' '.join(command)}: {last_lines(text)}")
                output.close()
    return result


def stress(directory, options, log):
    """Each stressor for itself, so that a failure has a name. Answers the states by stressor too."""
    program, states = find("stress-ng"), {}
    result = Result(note=f"{options.stress_time} s each")
    for name in STRESSORS:
        what = STRESS_OPTIONS.get(name, [f"--{name}", "2"])
        place = os.path.join(directory, f"stress-{name}")
        os.makedirs(place)
        command = [program, *what, "--timeout", f"{options.stress_time}s", "--verify", "--temp-path", place]
        # Some of them make files where they are started.
        status, output = run([*command, "--oomable"], log, timeout=options.stress_time + 300, cwd=place)
        states[name] = status
        if status in (3, 4):
            result.skipped += 1
        else:
            lines = [line for line in output.splitlines() if "fail:" in line or "error" in line.lower()]
            result.add(status == 0, f"stress-ng {name}: exit {status}: {' | '.join(lines[:3])[:400]}")
        run(["rm", "-rf", place], log)
    return result, states


FIO = {
    "write": ["--rw=write", "--bs=256k", "--ioengine=psync"],
    "randwrite": ["--rw=randwrite", "--bs=4k", "--ioengine=psync"],
    "unaligned": ["--rw=randwrite", "--bsrange=512-70000", "--bs_unaligned=1", "--ioengine=psync"],
    "mmap": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
    "randrw": ["--rw=randrw", "--bs=16k", "--ioengine=libaio", "--iodepth=8"],
    "fsync": ["--rw=write", "--bs=8k", "--ioengine=psync", "--fsync=16"],
    "many files": ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--nrfiles=50", "--openfiles=10"],
}


def fio(directory, options, log):
    """Writes and reads back with checksums, in several ways."""
    program, result = find("fio"), Result(note=f"{options.fio_size} MiB each, two jobs, crc32c")
    for name, how in FIO.items():
        place = os.path.join(directory, "fio-" + name.replace(" ", "-"))
        os.makedirs(place)
        sizes = [f"--size={options.fio_size}m", "--numjobs=2", f"--directory={place}"]
        verify = ["--verify_state_save=0", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting"]
        status, output = run([program, "--name=verify", *how, *sizes, *verify], log)
        result.add(status == 0 and "verify: bad" not in output, f"fio {name}: exit {status}: {last_lines(output)}")
        run(["rm", "-rf", place], log)
    return result
