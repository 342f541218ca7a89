"""Numbers as text for people: bytes, seconds, counts."""

import math

GiB = 2.0**30


def gib(bytes_: float) -> str:
    """Bytes as text with two decimals, in the largest unit that is at most the value."""
    return f"{bytes_ / GiB:,.2f} GiB" if bytes_ >= GiB / 10 else f"{bytes_ / 2**20:,.2f} MiB"


def seconds(value: float) -> str:
    """Seconds as text with three digits, in s or ms."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def short(number: float) -> str:
    """Returns three significant digits with a unit: 1.23M, 45.6k, 789, 7.00."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:
            return f"{_three_digits(number / limit)}{unit}"
    return _three_digits(number)


def _three_digits(number: float) -> str:
    # Not ":.3g", which turns 999.6 into 1e+03.
    places = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{places}f}"


def duration(seconds: float) -> str:
    """Returns the two largest units: 45s, 3m 05s, 1h 02m, 2d 03h; "?" if not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02d}h"
    if hours:
        return f"{h}h {m:02d}m"
    return f"{m}m {s:02d}s" if minutes else f"{s}s"
