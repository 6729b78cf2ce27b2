"""Pictures of flights: routes and a timeline in text, and the timeline as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from synth.flights import Flight

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
MOST = 64
"""Rows that are drawn at most; the rest is counted."""
_COLOURS = 12
_ROW, _LEFT, _WIDTH = 18, 90, 960
"""Of the SVG: height of a row, space for names, width of the time axis."""


def route_lines(flights: Sequence[Flight], most: int = MOST) -> Iterator[str]:
    """For each chunk its way: "chunk 0 of rank 0: 0 -> 1 -> 3, 1 -> 2". Hops of one branch are joined."""
    ways: dict[str, list[Flight]] = {}
    for flight in flights:
        ways.setdefault(flight.what, []).append(flight)
    for place, (what, hops) in enumerate(sorted(ways.items(), key=lambda entry: _natural(entry[0]))):
        if place == most:
            yield f"... and {len(ways) - most} more"
            return
        yield f"{what}: {', '.join(_branches(hops))}"


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which "chunk 2" comes before "chunk 10"."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in text.split()]


def _branches(hops: Sequence[Flight]) -> list[str]:
    """Chains of ranks; a hop goes on from the newest chain that ends where it begins."""
    chains: list[list[int]] = []
    for hop in hops:
        open_chain = next((chain for chain in reversed(chains) if chain[-1] == hop.source), None)
        if open_chain is None:
            chains.append([hop.source, hop.target])
        else:
            open_chain.append(hop.target)
    return [" -> ".join(map(str, chain)) for chain in chains]


def letters(flights: Sequence[Flight]) -> dict[str, str]:
    """A letter for each chunk, again from the first when there are more chunks than letters."""
    names = sorted({flight.what for flight in flights}, key=_natural)
    return {name: _LETTERS[place % len(_LETTERS)] for place, name in enumerate(names)}


def timeline_lines(flights: Sequence[Flight], width: int = 72, most: int = MOST) -> Iterator[str]:
    """A row per link, time from left to right, a letter for the chunk that is on its way, a dot where there is none."""
    end = max((flight.arrival for flight in flights), default=0.0)
    if not end:
        yield "nothing takes time"
        return
    letter_of, rows = letters(flights), _rows(flights)
    names = {link: f"{link[0]} -> {link[1]}" for link in rows}
    left = max(map(len, names.values()))
    yield f"{'link'.ljust(left)} |0{f'{end * 1e6:.6g} us'.rjust(width - 1)}|"
    for place, (link, mine) in enumerate(rows.items()):
        if place == most:
            yield f"... and {len(rows) - most} more links"
            break
        cells = ["."] * width
        for flight in mine:
            first = min(width - 1, int(flight.start / end * width))
            for column in range(first, max(first + 1, round(flight.arrival / end * width))):
                cells[column] = letter_of[flight.what]
        yield f"{names[link].ljust(left)} |{''.join(cells)}|"
    yield from _legend(letter_of)


def _legend(letter_of: dict[str, str]) -> Iterator[str]:
    entries = [f"{letter} {name}" for name, letter in letter_of.items()]
    for start in range(0, min(len(entries), MOST), 4):
        yield "  " + "   ".join(entries[start : start + 4])
    if len(entries) > MOST:
        yield f"  ... and {len(entries) - MOST} more"


def _rows(flights: Sequence[Flight]) -> dict[tuple[int, int], list[Flight]]:
    rows: dict[tuple[int, int], list[Flight]] = {}
    for flight in sorted(flights, key=lambda flight: (flight.source, flight.target, flight.start)):
        rows.setdefault((flight.source, flight.target), []).append(flight)
    return rows


def timeline_svg(flights: Sequence[Flight], title: str) -> str:
    """The timeline as an SVG document: a row per link, a bar per flight, the chunk's name when one points at it."""
    rows, letter_of = _rows(flights), letters(flights)
    end = max((flight.arrival for flight in flights), default=0.0) or 1.0
    colour = {name: 360 * (place % _COLOURS) // _COLOURS for place, name in enumerate(letter_of)}
    height = (len(rows) + 3) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="4" y="14" font-weight="bold">{escape(title)}: {end * 1e6:.6g} us</text>',
    ]
    for place, (link, mine) in enumerate(rows.items()):
        top = (place + 1.5) * _ROW
        parts.append(f'<text x="4" y="{top + 12:g}">{link[0]} -&gt; {link[1]}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{top:g}" width="{_WIDTH}" height="{_ROW - 3}" fill="#f2f2f2"/>')
        parts += [_bar(flight, top, end, colour[flight.what]) for flight in mine]
    return "\n".join([*parts, "</svg>", ""])


def _bar(flight: Flight, top: float, end: float, hue: int) -> str:
    left, width = _LEFT + flight.start / end * _WIDTH, (flight.arrival - flight.start) / end * _WIDTH
    times = f"{flight.start * 1e6:.6g} to {flight.arrival * 1e6:.6g} us"
    return (
        f'<rect x="{left:.2f}" y="{top:g}" width="{max(width, 0.5):.2f}" height="{_ROW - 3}" '
        f'fill="hsl({hue},60%,65%)" stroke="#444" stroke-width="0.4">'
        f"<title>{escape(flight.what)}: {times}</title></rect>"
    )
