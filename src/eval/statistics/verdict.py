"""What an interval says of a sign that was published or asked for: the only source of verdict words."""

from src.eval.statistics.bootstrap import Interval

SHOWN, OPPOSITE, UNDECIDED, NO_SIGN = "shown", "opposite", "undecided", "none"


def verdict(found: Interval, asked: float, threshold: float = 0.0) -> str:
    """``shown``, ``opposite`` or ``undecided``; ``none`` where no sign is asked for.

    Args:
        found: The interval of a difference, or of anything that is held against ``threshold``.
        asked: A number with the sign that is published or asked for, such as the published difference itself. Two
            published means that agree in all their printed digits differ by 0, which has no sign.
        threshold: What the interval has to leave out.

    Returns:
        ``shown`` if the whole interval lies on the asked side of the threshold, ``opposite`` if on the other side.
    """
    if asked == 0:
        return NO_SIGN
    above, below = found.low > threshold, found.high < threshold
    if not (above or below):
        return UNDECIDED
    return SHOWN if above == (asked > 0) else OPPOSITE
