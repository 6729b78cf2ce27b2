"""Characters that no file of ours may hold."""

from __future__ import annotations

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character beyond U+FFFF: no text holds it, so nothing could print or write a name that has one."""
