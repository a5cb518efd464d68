"""Values of Parquet and Arrow columns as JSON has them; docs/data.md states the rule."""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import numbers
import uuid
from collections.abc import Mapping
from typing import Any


def as_json(value: Any) -> Any:
    """The value as JSON has it: dates and times as ISO 8601, durations in seconds, decimals and UUIDs as text, bytes in
    base64, what is no finite number as null.

    Raises:
        TypeError: there is no such form of it.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(each) for each in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(type(value).__name__)
