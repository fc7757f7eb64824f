"""Prints the lower bounds of a pyproject.toml as pip constraints: `name==bound.*`, one a line."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    name, bound = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", requirement).groups()
    print(f"{name}=={bound}.*")
