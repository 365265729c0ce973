"""List the installed packages with known vulnerabilities; exit with status 1 if there are any.

If no vulnerability service can be reached, as behind a package mirror, it reports that nothing was checked.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Check the packages of the running interpreter with pip-audit."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner=off", "--format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"Packages were not checked for vulnerabilities: pip-audit ended with {done.stderr.strip()[-300:]}")
        return 0
    asked = [package for package in packages if "vulns" in package]
    for package in asked:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    print(f"Checked {len(asked)} of {len(packages)} packages for known vulnerabilities.")
    return int(any(package["vulns"] for package in asked))


if __name__ == "__main__":
    sys.exit(main())
