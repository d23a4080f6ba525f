"""Charts as inline SVG: curves, systems by a metric, and what they are drawn with."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A curve of a run.
    from tuneloop.report.charts.curves import Curve as Curve

    # Losses over the steps.
    from tuneloop.report.charts.curves import loss_chart as loss_chart

    # Curves of several runs.
    from tuneloop.report.charts.curves import overlay_chart as overlay_chart

    # The points of a curve.
    from tuneloop.report.charts.curves import points_of as points_of

    # A value over the steps.
    from tuneloop.report.charts.curves import step_chart as step_chart

    # Pixels of a wide chart.
    from tuneloop.report.charts.svg import WIDE as WIDE

    # An axis for some values.
    from tuneloop.report.charts.svg import axis as axis

    # A chart for wide and for narrow screens.
    from tuneloop.report.charts.svg import chart_pair as chart_pair

    # A text that fits into some pixels.
    from tuneloop.report.charts.svg import fit as fit

    # The same, cut in the middle.
    from tuneloop.report.charts.svg import fit_middle as fit_middle

    # The lines of a grid.
    from tuneloop.report.charts.svg import grid as grid

    # A drawing with its title.
    from tuneloop.report.charts.svg import svg_chart as svg_chart

    # A line.
    from tuneloop.report.charts.svg import svg_line as svg_line

    # A path.
    from tuneloop.report.charts.svg import svg_path as svg_path

    # A text.
    from tuneloop.report.charts.svg import svg_text as svg_text

    # A value with its interval, small.
    from tuneloop.report.charts.systems import dot_chart as dot_chart

    # A gain with its interval, small.
    from tuneloop.report.charts.systems import gain_chart as gain_chart

    # A curve, small.
    from tuneloop.report.charts.systems import small_curve as small_curve

    # Bars, small.
    from tuneloop.report.charts.systems import sparkline as sparkline

__getattr__, __dir__ = door(__name__)
