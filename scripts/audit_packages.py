"""Tells which installed packages have known vulnerabilities; exit status 1 when there are any.

Where no vulnerability service can be asked, as behind a mirror of packages, it says that nothing was looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Ask pip-audit about the packages of the interpreter that runs this."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner=off", "--format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"Known vulnerabilities were not looked up: pip-audit ended with {done.stderr.strip()[-300:]}")
        return 0
    asked = [package for package in packages if "vulns" in package]
    for package in asked:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, corrected in {fixed}")
    print(f"Known vulnerabilities were looked up for {len(asked)} of {len(packages)} packages.")
    return int(any(package["vulns"] for package in asked))


if __name__ == "__main__":
    sys.exit(main())
