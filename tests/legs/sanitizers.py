"""The sanitizers leg: do the kernels touch memory that is not theirs, or rely on what C++ leaves undefined?

It builds them with AddressSanitizer and UndefinedBehaviorSanitizer in build/kernels-sanitized, by CXX or else
by c++, and runs tests/kernels on that library in this environment. ONNX Runtime's arena is off there, so that
each tensor is an allocation with watched ends. Not seen: what tile instructions load and store (AMX). Where
no C++ compiler is, it says so and does nothing, as `make kernels` does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from environment import ROOT, find_compiler, run

BUILD = ROOT / "build" / "kernels-sanitized"
REPORTS = BUILD / "report"


def main() -> None:
    """Run the leg."""
    compiler = find_compiler("sanitizers: nothing done")
    if compiler is None:
        return
    configure = ["-S", ROOT / "kernels", "-B", BUILD, "-G", "Ninja", "-DKOE5_SANITIZE=ON"]
    # cmake and ninja of this environment come first: the extra `dev` has them.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake") or sys.exit("cmake is not there: pip install cmake ninja")
    run(cmake, *configure, f"-DCMAKE_CXX_COMPILER={compiler}")
    run(cmake, "--build", BUILD)
    for report in reports():
        report.unlink()
    tests = [sys.executable, "-m", "pytest", "tests/kernels", "-q", *sys.argv[1:]]
    status = subprocess.run(tests, cwd=ROOT, env=os.environ | environment(compiler), check=False).returncode
    for report in reports():
        sys.stdout.write(report.read_text(encoding="utf-8", errors="replace"))
    sys.stdout.write(f"sanitizers: {len(reports())} reports, pytest exit status {status}\n")
    sys.exit(1 if status or reports() else 0)


def reports() -> list[Path]:
    """What the sanitizers wrote, a file a process."""
    return sorted(REPORTS.parent.glob(f"{REPORTS.name}.*"))


def environment(compiler: str) -> dict[str, str]:
    """Python is not built with the sanitizers: their runtime must be loaded before it."""
    common = f"log_path={REPORTS}"
    return {
        "KOE5_ONNX_KERNELS_LIBRARY": str(BUILD / "libkoe5_kernels.so"),
        "KOE5_ONNX_TESTS_ARENA": "0",
        "LD_PRELOAD": " ".join(runtime(compiler)),
        # Python keeps much until its end, and tests let an impossible allocation fail.
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
    }


def runtime(compiler: str) -> list[str]:
    """The shared libraries to load first: AddressSanitizer's, and libstdc++, whose throw it wraps."""
    found = []
    for name in ("libclang_rt.asan-x86_64.so", "libclang_rt.asan.so", "libasan.so"):
        path = library_file(compiler, name)
        if path.is_absolute() and path.exists():
            found.append(str(path))
            break
    if not found:
        sys.exit(
            f"{compiler} has no shared library of AddressSanitizer: install libasan8 or libclang-rt-19-dev"
        )
    return [*found, str(library_file(compiler, "libstdc++.so.6"))]


def library_file(compiler: str, name: str) -> Path:
    """Where the compiler would link `name` from; the bare name where it has none."""
    answer = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True)
    return Path(answer.strip())


if __name__ == "__main__":
    main()
