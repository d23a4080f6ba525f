"""A server's history as a page and a record: cycles, experiments, windows, costs."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A day of a chart: its value, and the part of it that failed.
    from tuneloop.improve.report.charts import DayBar as DayBar

    # A box in the picture of a lineage.
    from tuneloop.improve.report.charts import LineageNode as LineageNode

    # Estimated accuracy over windows of traffic.
    from tuneloop.improve.report.charts import accuracy_chart as accuracy_chart

    # Bars by day.
    from tuneloop.improve.report.charts import day_chart as day_chart

    # Latencies by day.
    from tuneloop.improve.report.charts import latency_chart as latency_chart

    # Data sets, runs and versions with what came of which.
    from tuneloop.improve.report.charts import lineage_chart as lineage_chart

    # An experiment in the report's table.
    from tuneloop.improve.report.command import experiment_line as experiment_line

    # The cost of each cycle of retraining.
    from tuneloop.improve.report.command import ledger_of as ledger_of

    # A monitored window in the report's table.
    from tuneloop.improve.report.command import monitored_window as monitored_window

    # Write the page and its record.
    from tuneloop.improve.report.command import write_improve_report as write_improve_report

    # How experiments end, in words.
    from tuneloop.improve.report.html import ENDS as ENDS

    # The color of each end.
    from tuneloop.improve.report.html import TONES as TONES

    # The part of a page about one experiment.
    from tuneloop.improve.report.html import experiment_part as experiment_part

    # The windows of the monitor as a chart.
    from tuneloop.improve.report.html import windows_chart as windows_chart

    # The type of a line about an experiment.
    from tuneloop.improve.report.record import ExperimentLine as ExperimentLine

    # A cycle's cost, as the record has it.
    from tuneloop.improve.report.record import LedgerCycle as LedgerCycle

__getattr__, __dir__ = door(__name__)
