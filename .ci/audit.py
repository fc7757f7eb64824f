"""Looks up every package of requirements.lock in PyPI's advisories (pip-audit) and says what is known of them.

Exit code 0: all were looked up, and no hole is known but those of `EXCEPTIONS`. 1: a hole is known, or some packages
had no answer. 3: nothing could be looked up, as without a network; with `--unless-offline` that is 0: NOT AUDITED.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
EXCEPTIONS: dict[str, str] = {}
"""Advisories that do not concern mulcot: `{"PYSEC-2026-1": "in the server of X, which mulcot does not start"}`."""
FOUND, NOT_AUDITED = 1, 3


def judge(report: Mapping[str, Any] | None, exceptions: Mapping[str, str]) -> tuple[int, list[str]]:
    """The exit code and what to print.

    Args:
        report: what `pip-audit --format json` wrote; None when it wrote none.
        exceptions: advisories to be passed over, with reasons.
    """
    packages = [] if report is None else report["dependencies"]
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return NOT_AUDITED, ["NOT AUDITED: advisories could not be fetched, nothing is known of any package"]
    lines, known = [], set()
    for package in asked:
        for hole in package["vulns"]:
            names = {hole["id"], *hole.get("aliases", ())}
            excused = names & exceptions.keys()
            known |= excused
            fixed = ", ".join(hole.get("fix_versions", ())) or "no version yet"
            if excused:
                lines.append(f"excepted: {package['name']} {hole['id']}: {exceptions[min(excused)]}")
            else:
                lines.append(f"HOLE: {package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    lines += [f"NO ANSWER: {package['name']}: {package['skip_reason']}" for package in packages if package not in asked]
    lines += [f"UNUSED EXCEPTION: {name}: take it out" for name in sorted(exceptions.keys() - known)]
    failed = any(line.startswith(("HOLE", "NO ANSWER", "UNUSED")) for line in lines)
    return FOUND if failed else 0, [*lines, f"{len(asked)} packages looked up"]


def main(argv: Sequence[str]) -> int:
    """Runs pip-audit over the lock file."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--require-hashes"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = None
        print(done.stderr.strip()[-1000:], file=sys.stderr)
    code, lines = judge(report, EXCEPTIONS)
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return 0 if code == NOT_AUDITED and "--unless-offline" in argv else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
