"""How charts look, in the page and as files: colours that colour-blind readers tell apart, on light and on dark."""

from __future__ import annotations

from typing import Any, Literal

Theme = Literal["light", "dark"]

ROLES = ("target", "donor", "method", "control", "model")
_INK = {
    "light": {"ink": "#1c2128", "soft": "#57606a", "rule": "#d5dae0", "accent": "#0072b2", "guide": "#6e7781"},
    "dark": {"ink": "#e6e9ec", "soft": "#a4adb6", "rule": "#3a424b", "accent": "#56b4e9", "guide": "#98a2ac"},
}
# Okabe and Ito, with the yellow left out and the last one that of the ink
_CATEGORIES = {
    "light": ["#0072b2", "#d55e00", "#008a66", "#b6598e", "#c28500", "#3f9fd1", "#1c2128"],
    "dark": ["#56b4e9", "#ff8f45", "#35c79b", "#e39bc8", "#e6b035", "#7f9fff", "#e6e9ec"],
}
_HEAT = {
    "light": ["#f3f6fa", "#c9dcee", "#8fbbdd", "#4b93c4", "#1a699f", "#08406b"],
    "dark": ["#1d2730", "#174467", "#1c6699", "#3d8fc6", "#7fbce4", "#d5ecfb"],
}


def config(theme: Theme) -> dict[str, Any]:
    """The Vega-Lite configuration of a theme."""
    ink = _INK[theme]
    words = {"labelColor": ink["soft"], "titleColor": ink["ink"], "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": "transparent" if theme == "dark" else "white",
        "font": "system-ui, 'Segoe UI', 'Liberation Sans', Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {**words, "titleFontWeight": "normal", "domainColor": ink["rule"], "tickColor": ink["rule"],
                 "gridColor": ink["rule"], "labelLimit": 190},
        "legend": {**words, "titleFontWeight": "normal", "labelLimit": 220, "orient": "top", "symbolLimit": 60,
                   "columns": 4},
        "title": {"color": ink["ink"], "fontSize": 13, "anchor": "start"},
        "header": {"labelColor": ink["ink"], "titleColor": ink["ink"], "labelFontSize": 12},
        "text": {"color": ink["ink"], "fontSize": 11},
        "rule": {"color": ink["guide"]},
        "tick": {"color": ink["ink"]},
        "bar": {"color": ink["accent"]},
        "point": {"color": ink["accent"], "filled": True, "size": 70},
        "line": {"color": ink["accent"], "strokeWidth": 2},
        "range": {"category": _CATEGORIES[theme], "heatmap": _HEAT[theme], "ramp": _HEAT[theme]},
    }  # fmt: skip
