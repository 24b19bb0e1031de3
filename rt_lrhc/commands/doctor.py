"""Say what this machine offers and would grant, and what dead clusters left behind.

Exit code: 0 if rt_lrhc can run here, also with remarks; 1 if something that it needs is missing, or a leftover cannot
be removed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rt_lrhc.commands._examinations import Verdict, examine
from rt_lrhc.timing.realtime import machine


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc doctor` shall do.

    Attributes:
        clean: Remove what dead clusters left behind.
        json: File to write the findings to as well.
    """

    clean: bool = False
    json: Path | None = None


def run(options: Options) -> int:
    """Examine the machine, print the findings one by one, and return the exit code."""
    here = machine()
    print("\n".join(here.lines()), flush=True)
    findings = []
    for finding in examine(clean=options.clean):
        print(finding.line(), flush=True)
        findings.append(finding)
    problems = [finding.topic for finding in findings if finding.verdict is Verdict.PROBLEM]
    print(f"see to: {', '.join(problems)}" if problems else "rt_lrhc can run here")
    if options.json is not None:
        record = {
            "machine": asdict(here),
            "findings": [asdict(finding) | {"verdict": finding.verdict.value} for finding in findings],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 1 if problems else 0
