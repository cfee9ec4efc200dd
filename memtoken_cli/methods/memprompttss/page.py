"""A scene as one HTML page: inline SVG, inline script, nothing loaded, every text escaped.

Shape suffixes: X pixel columns, C channels.
"""

from __future__ import annotations

import html

import numpy as np

from memtoken_cli.methods.memprompttss.plot import Band, Scene, colour, legend, ticks

WIDTH, LEFT, ROW, GAP, BAND = 1200, 130, 60, 8, 26

STYLE = """body{font:13px sans-serif;margin:16px;color:#222}svg{display:block}
.l{fill:none;stroke:#333;stroke-width:1}.n{text-anchor:end;font-size:12px}.t{text-anchor:middle;font-size:11px}
.b{stroke:#fff;stroke-width:.5}.m{stroke:#777;stroke-dasharray:2 2}.c{fill:none;stroke:#000;stroke-width:1}
.k{display:inline-block;width:12px;height:12px;margin:0 4px 0 12px;border:1px solid #555}
#cursor{stroke:#000;stroke-width:.5}#tip{position:fixed;background:#fff;border:1px solid #555;padding:3px 6px;
pointer-events:none;display:none;white-space:pre}"""

SCRIPT = """const svg=document.querySelector('svg'),tip=document.getElementById('tip'),
cur=document.getElementById('cursor'),d=svg.dataset;
svg.addEventListener('mousemove',e=>{const box=svg.getBoundingClientRect();
const x=(e.clientX-box.left)*(+d.full)/box.width-(+d.left);
if(x<0||x>+d.width){tip.style.display='none';return}
const row=Math.min(Math.floor(x/d.width*d.rows),d.rows-1);
const time=+d.from+(d.to-d.from)*row/d.rows;
let text=d.iso==='1'?new Date(time*1000).toISOString():String(+time.toPrecision(8));
text=d.name+' '+text+'\\nrow '+row;
for(const b of document.querySelectorAll('.b')){if(+b.dataset.a<=row&&row<+b.dataset.z)
text+='\\n'+b.dataset.level+': '+b.dataset.state+(b.dataset.p?' ('+b.dataset.p+')':'')}
tip.textContent=text;tip.style.display='block';tip.style.left=(e.clientX+14)+'px';tip.style.top=(e.clientY+10)+'px';
cur.setAttribute('x1',x+(+d.left));cur.setAttribute('x2',x+(+d.left))});
svg.addEventListener('mouseleave',()=>{tip.style.display='none'});"""


def page(scene: Scene) -> str:
    """The file's text."""
    parts: list[str] = []
    y = GAP
    for name, low_X, high_X in zip(scene.channels, scene.low_CX, scene.high_CX, strict=True):
        parts.append(_text(LEFT - 8, y + ROW / 2 + 4, name, "n"))
        parts.append(f'<path class="l" d="{_outline(low_X, high_X, y)}"/>')
        y += ROW + GAP
    for level, bands in scene.bands:
        parts.append(_text(LEFT - 8, y + BAND / 2 + 4, level, "n"))
        parts += [_band(band, level, y, scene.rows) for band in bands]
        parts.append(f'<path class="c" d="{_confidence(bands, y + BAND + 12, scene.rows)}"/>')
        y += BAND + 14 + GAP
    for row, text in scene.marks:
        x = _x(row, scene.rows)
        parts.append(
            f'<line class="m" x1="{x}" x2="{x}" y1="0" y2="{y}"><title>{html.escape(text)}, row {row}</title>'
            "</line>"
        )
    for place, text in ticks(scene.series):
        parts.append(_text(_x(place, scene.rows), y + 14, text, "t"))
    height = y + 24
    series = scene.series
    more = f"<p>{scene.left_out} more channels are not drawn.</p>" if scene.left_out else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(series.name)}</title><style>{STYLE}</style></head><body>\n"
        f"<h3>{html.escape(series.name)}</h3><p>{_legend(scene)}</p>{more}\n"
        f'<svg viewBox="0 0 {WIDTH + LEFT + 20} {height}" width="100%" data-full="{WIDTH + LEFT + 20}" '
        f'data-left="{LEFT}" data-width="{WIDTH}" data-rows="{scene.rows}" '
        f'data-from="{series.time_of(0)!r}" data-to="{series.end_time!r}" data-iso="{int(series.iso)}" '
        f'data-name="{html.escape(series.time_name or "row")}">\n'
        + "\n".join(parts)
        + f'\n<line id="cursor" x1="-1" x2="-1" y1="0" y2="{height - 24}"/></svg><div id="tip"></div>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _x(row: float, rows: int) -> str:
    return f"{LEFT + WIDTH * row / rows:.1f}"


def _text(x: float | str, y: float, text: str, kind: str) -> str:
    shown = text if len(text) <= 24 else text[:23] + "…"
    return f'<text class="{kind}" x="{x}" y="{y:g}">{html.escape(shown)}</text>'


def _outline(low_X: np.ndarray, high_X: np.ndarray, top: float) -> str:
    """A stroke up and down every pixel column; broken at gaps."""
    known_X = np.isfinite(low_X)
    if not known_X.any():
        return ""
    least, most = float(np.nanmin(low_X)), float(np.nanmax(high_X))
    scale = ROW / (most - least) if most > least else 0.0
    step = WIDTH / len(low_X)
    out, down = [], False
    for i, (low, high, known) in enumerate(
        zip(low_X.tolist(), high_X.tolist(), known_X.tolist(), strict=True)
    ):
        if not known:
            down = False
            continue
        a, b = (f"{top + (most - value) * scale:.1f}" for value in (high, low))
        out.append(f"{'L' if down else 'M'}{LEFT + i * step:.1f} {a}" + (f"V{b}" if a != b else ""))
        down = True
    return "".join(out)


def _band(band: Band, level: str, y: float, rows: int) -> str:
    hue, light = colour(band.label)
    label = html.escape(band.label)
    sure = "" if band.confidence is None else f"{band.confidence:.2f}"
    width = WIDTH * (band.end - band.start) / rows
    rect = (
        f'<rect class="b" x="{_x(band.start, rows)}" y="{y:g}" width="{width:.2f}" height="{BAND}" '
        f'fill="hsl({hue * 360:.0f},60%,{light * 100:.0f}%)" data-a="{band.start}" data-z="{band.end}" '
        f'data-level="{html.escape(level)}" data-state="{label}" data-p="{sure}"/>'
    )
    if width < 8 * len(band.label) + 8:
        return rect
    ink = "#fff" if light < 0.6 else "#000"
    middle = LEFT + WIDTH * (band.start + band.end) / 2 / rows
    return rect + f'<text class="t" x="{middle:.1f}" y="{y + BAND / 2 + 4:g}" fill="{ink}">{label}</text>'


def _confidence(bands: tuple[Band, ...], bottom: float, rows: int) -> str:
    """A step line under the band, from 0 to 1."""
    return "".join(
        f"M{_x(band.start, rows)} {bottom - 10 * band.confidence:.1f}H{_x(band.end, rows)}"
        for band in bands
        if band.confidence is not None
    )


def _legend(scene: Scene) -> str:
    out = []
    for label in legend(scene):
        hue, light = colour(label)
        style = f"background:hsl({hue * 360:.0f},60%,{light * 100:.0f}%)"
        out.append(f'<span class="k" style="{style}"></span>{html.escape(label)}')
    return "".join(out)
